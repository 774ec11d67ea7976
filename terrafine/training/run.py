"""Everything one training needs, put together and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from terrafine.errors import TrainingError
from terrafine.legend import Legend
from terrafine.models.raw import RawModel
from terrafine.spec import MACHINE_SETTINGS, TrainingSpec
from terrafine.training.checkpoint import identify
from terrafine.training.data import ChipSource, Crops, named
from terrafine.training.group import Group
from terrafine.training.loss import Confusion
from terrafine.training.plan import EpochPlan
from terrafine.training.schedule import learning_rate


@dataclass(frozen=True)
class Run:
    """One training on one of its workers."""

    source: ChipSource
    chips: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    model: RawModel
    legend: Legend
    class_weights: tuple[float, ...]
    confusion: Confusion | None
    spec: TrainingSpec
    epochs: int
    seed: int
    device: torch.device
    group: Group
    also_identified_by: Mapping[str, object] = field(default_factory=dict)

    @property
    def plan(self) -> EpochPlan:
        """How every epoch is shared out."""
        return EpochPlan(
            crops=len(self.chips) * self.spec.crops_per_chip,
            batch=self.spec.batch,
            workers=self.group.size,
            micro_batch=self.spec.micro_batch,
        )

    def crops(self, epoch: int) -> Crops:
        """The crops of an epoch, counted from 1."""
        return Crops(
            source=self.source,
            indexes=self.chips,
            legend=self.legend,
            crop=self.spec.crop,
            crops_per_chip=self.spec.crops_per_chip,
            flips_and_rotations=self.spec.flips_and_rotations,
            seed=self.seed,
            epoch=epoch,
        )

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0 over the whole training."""
        spec = self.spec
        total = self.epochs * self.plan.steps
        return learning_rate(spec.schedule, spec.learning_rate, step, total)

    def torch_seed(self, step: int) -> int:
        """For what the network draws in a step: another number on every worker."""
        sequence = np.random.SeedSequence((self.seed, step, self.group.rank))
        return int(sequence.generate_state(1)[0])

    def chips_of(self, step: int) -> str:
        """The chips that a step, counted from 0 over the whole training, is taken on."""
        epoch, epoch_step = divmod(step, self.plan.steps)
        crops = self.crops(epoch + 1)
        chips = {crops.place(position)[0] for position in self.plan.positions(epoch_step)}
        return ", ".join(named(self.source, chip) for chip in sorted(chips))

    def identity(self) -> dict[str, str]:
        """Digests of all that the outcome depends on, part by part."""
        raw = self.model.raw
        return identify(
            architecture={name: list(v.shape) for name, v in self.model.state_dict().items()},
            legend=self.legend.digest,
            chips={
                "size": self.source.size,
                "fill": raw.fill,
                "scaling": [raw.mean.tolist(), raw.std.tolist()],
                **{
                    part: [(int(i), self.source.name(int(i))) for i in indexes]
                    for part, indexes in (("train", self.chips), ("validation", self.validation))
                },
            },
            settings={
                "spec": self.spec.model_dump(mode="json", exclude=MACHINE_SETTINGS["training"]),
                "class_weights": self.class_weights,
                "confusion": self.confusion,
                "epochs": self.epochs,
            },
            seed=self.seed,
            **self.also_identified_by,
        )

    def check(self) -> None:
        """Raise TrainingError for what cannot be trained."""
        self._check_chips()
        spec, workers = self.spec, self.group.size
        if spec.crop > self.source.size:
            raise TrainingError(
                f"training.crop {spec.crop} is larger than the chips, which have "
                f"{self.source.size} pixels a side"
            )
        check_workers(workers, batch=spec.batch, chips=len(self.chips))
        if len(self.class_weights) != len(self.legend.classes):
            raise TrainingError(
                f"{len(self.class_weights)} class weights for the {len(self.legend.classes)} "
                f"classes of legend {self.legend.name!r}; give one for every class"
            )

    def _check_chips(self) -> None:
        for what, chips, remedy in (
            ("training", self.chips, "use smaller chips or a lower filter.min_agreement"),
            ("validation", self.validation, "raise chips.validation_fraction or lower chips.block"),
        ):
            if not len(chips):
                raise TrainingError(f"there is no {what} chip; {remedy}, or use more imagery")
            wrong = chips[(chips < 0) | (chips >= len(self.source))]
            if len(wrong):
                raise TrainingError(
                    f"{what} chip {wrong[0]} is not in the chip store, which has "
                    f"{len(self.source)}; run the label stage again"
                )


def check_workers(workers: int, *, batch: int, chips: int) -> None:
    """Raise TrainingError when there are too many workers for the batch or the training chips."""
    for what, number in (("training.batch", batch), ("training chips", chips)):
        if workers > number:
            raise TrainingError(
                f"there are {workers} workers for {what} {number}; each needs one at least: "
                f"set training.workers to {number} or fewer"
            )


def choose_device(wanted: str) -> torch.device:
    """ "auto": CUDA where there is one. TrainingError when CUDA is wanted and absent."""
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise TrainingError(
            "training.device is cuda, but torch sees no CUDA device here; "
            "set it to auto or cpu, or install a CUDA build of torch on a GPU machine"
        )
    return torch.device("cuda" if present and wanted != "cpu" else "cpu")
