"""Training with SGD as in Dong et al. 2020, section 3.2; CPU and CUDA from one code path.

On the CPU the same seed, call and number of threads give the same weights to the last bit. On
CUDA they do not: the backward pass of bilinear resizing and the two-dimensional cross entropy add
up in no fixed order there. What is drawn at random (crops, their symmetries, the order of chips)
is the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from terrafine.errors import TrainingError
from terrafine.legend import Legend
from terrafine.models.raw import RawModel
from terrafine.progress import progress
from terrafine.spec import MACHINE_SETTINGS, TrainingSpec
from terrafine.training.checkpoint import (
    Checkpoint,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from terrafine.training.data import ChipSource, Crops, WholeChips, as_indexes, batches
from terrafine.training.evaluate import Evaluation, evaluate
from terrafine.training.history import EpochRecord, TrainingResult
from terrafine.training.loss import WeightedCrossEntropy, counted_target
from terrafine.training.schedule import learning_rate

# Losses are looked at this often, so that CUDA need not wait for the host at every step.
CHECK_EVERY = 16


@dataclass(frozen=True)
class _Run:
    """Everything one training needs, put together once."""

    source: ChipSource
    chips: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    model: RawModel
    optimiser: torch.optim.SGD
    loss: WeightedCrossEntropy
    legend: Legend
    spec: TrainingSpec
    epochs: int
    seed: int
    device: torch.device

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 where the spec asks for it, or on CUDA."""
        wanted = self.spec.precision
        reduced = wanted == "bf16" or (wanted == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=reduced)


def train(
    source: ChipSource,
    *,
    train: Sequence[int],
    validation: Sequence[int],
    model: RawModel,
    legend: Legend,
    class_weights: tuple[float, ...],
    spec: TrainingSpec,
    epochs: int,
    seed: int,
    checkpoints: Path,
    heading: str,
) -> TrainingResult:
    """Train ``model`` (in place) on crops of the ``train`` chips of ``source``.

    After every epoch the whole ``validation`` chips are predicted; the epoch that agrees most
    with their labels is the best. ``class_weights`` are in output order. Pixels that are missing
    or whose label is no class of ``legend`` do not count. ``checkpoints`` is a folder of this
    training's own: the same call on it goes on after the last full epoch and ends as if it had
    never been stopped. ``heading`` stands beside the progress bar.

    Raises TrainingError when the chips cannot be trained on, when the loss is not a number, and
    when a checkpoint cannot be written, read, or is of another training.
    """
    device = choose_device(spec.device)
    run = _Run(
        source=source,
        chips=as_indexes(train),
        validation=as_indexes(validation),
        model=model.to(device).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        optimiser=torch.optim.SGD(
            model.parameters(),
            lr=spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            fused=True,
        ),
        loss=WeightedCrossEntropy(class_weights).to(device),
        legend=legend,
        spec=spec,
        epochs=epochs,
        seed=seed,
        device=device,
    )
    _check(run)
    identity = _fingerprint(run, class_weights)
    with _reproducible(device), progress(heading, total=epochs, unit="epoch") as task:
        last = load_checkpoint(checkpoints, identity)
        done = [] if last is None else [EpochRecord(**record) for record in last.history]
        if last is not None:
            model.load_state_dict(last.model)
            run.optimiser.load_state_dict(last.optimiser)
            task.advance(len(done))
        for epoch in range(len(done) + 1, epochs + 1):
            record = _epoch(run, epoch)
            done.append(record)
            last = _checkpoint(run, identity, done, last)
            save_checkpoint(checkpoints, last)
            task.advance(loss=record.train_loss, agreement=record.validation_agreement)
    assert last is not None
    return TrainingResult(tuple(done), last.best_epoch, last.best_state)


def choose_device(wanted: str) -> torch.device:
    """ "auto": CUDA where there is one. TrainingError when CUDA is wanted and absent."""
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise TrainingError(
            "training.device is cuda, but torch sees no CUDA device here; "
            "set it to auto or cpu, or install a CUDA build of torch on a GPU machine"
        )
    return torch.device("cuda" if present and wanted != "cpu" else "cpu")


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Only deterministic operations on the CPU; the fastest convolutions on CUDA."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    cuda = device.type == "cuda"
    forked = [torch.cuda.current_device()] if cuda else []
    with (
        torch.random.fork_rng(devices=forked),
        torch.backends.cudnn.flags(enabled=True, benchmark=cuda, allow_tf32=True),
    ):
        torch.use_deterministic_algorithms(not cuda)
        # every operation here writes all of its output; filling it first costs a tenth
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            memory.fill_uninitialized_memory = filled


def _check(run: _Run) -> None:
    spec, size = run.spec, run.source.size
    for what, chips in (("training", run.chips), ("validation", run.validation)):
        if not len(chips):
            raise TrainingError(
                f"there is no {what} chip; use more imagery, smaller chips or a lower "
                "filter.min_agreement"
            )
        if chips.min() < 0 or chips.max() >= len(run.source):
            raise TrainingError(
                f"{what} chip {chips.max()} is not in the chip store, which has "
                f"{len(run.source)}; run the label stage again"
            )
    if spec.crop > size:
        raise TrainingError(
            f"training.crop {spec.crop} is larger than the chips, which have {size} pixels a side"
        )
    if len(run.loss.weights) != len(run.legend.classes):
        raise TrainingError(
            f"{len(run.loss.weights)} class weights for the {len(run.legend.classes)} classes of "
            f"legend {run.legend.name!r}; give one for every class"
        )


def _fingerprint(run: _Run, class_weights: tuple[float, ...]) -> str:
    return fingerprint(
        spec=run.spec.model_dump(mode="json", exclude=MACHINE_SETTINGS["training"]),
        legend=run.legend.digest,
        class_weights=class_weights,
        epochs=run.epochs,
        seed=run.seed,
        chips=[len(run.source), run.source.size, run.chips.tolist(), run.validation.tolist()],
        network={name: list(value.shape) for name, value in run.model.state_dict().items()},
        raw=[run.model.raw.fill, run.model.raw.mean.tolist(), run.model.raw.std.tolist()],
    )


def _epoch(run: _Run, epoch: int) -> EpochRecord:
    """Train and validate once."""
    started = time.perf_counter()
    crops = Crops(
        source=run.source,
        indexes=run.chips,
        legend=run.legend,
        crop=run.spec.crop,
        crops_per_chip=run.spec.crops_per_chip,
        flips_and_rotations=run.spec.flips_and_rotations,
        seed=run.seed,
        epoch=epoch,
    )
    # networks with dropout draw from torch's generator
    torch.manual_seed(int(np.random.default_rng((run.seed, epoch)).integers(2**31)))
    train_loss = _train_epoch(run, crops, epoch)
    trained = time.perf_counter()
    found = _validate(run, epoch)
    return EpochRecord(
        epoch=epoch,
        learning_rate=_rate(run, crops, epoch, step=0),
        train_loss=train_loss,
        validation_loss=found.loss,
        validation_agreement=found.agreement,
        validation_recall=dict(zip(run.legend.names, found.recall, strict=True)),
        seconds=time.perf_counter() - started,
        pixels_per_second=len(crops) * run.spec.crop**2 / (trained - started),
    )


def _rate(run: _Run, crops: Crops, epoch: int, step: int) -> float:
    steps = -(-len(crops) // run.spec.batch)
    return learning_rate(
        run.spec.schedule, run.spec.learning_rate, (epoch - 1) * steps + step, run.epochs * steps
    )


def _train_epoch(run: _Run, crops: Crops, epoch: int) -> float:
    """One pass over the crops; mean loss over their labelled pixels."""
    run.model.train()
    loader = batches(
        crops,
        batch=run.spec.batch,
        workers=run.spec.loader_workers,
        pin_memory=run.device.type == "cuda",
    )
    sums: list[Tensor] = []
    for step, (image, labels) in enumerate(loader):
        for group in run.optimiser.param_groups:
            group["lr"] = _rate(run, crops, epoch, step)
        with run.autocast():
            logits, valid = run.model.logits_and_valid(image.to(run.device, non_blocking=True))
        target = counted_target(labels.to(run.device, non_blocking=True), valid)
        total, weight = run.loss(logits, target)
        run.optimiser.zero_grad()
        # a batch without any labelled pixel has loss 0, and moves nothing but the momentum
        (total / torch.where(weight > 0, weight, 1.0)).backward()
        run.optimiser.step()
        sums.append(torch.stack([total.detach(), weight]))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == len(loader):
            _check_finite(sums, epoch)
    total, weight = torch.stack(sums).double().sum(dim=0).tolist()
    if not weight:
        raise TrainingError(
            "no pixel of the training chips has a label; check labels.crosswalk and the overlap "
            "of labels and imagery"
        )
    return float(total / weight)


def _check_finite(sums: list[Tensor], epoch: int) -> None:
    """TrainingError at the first loss that is not a number, among the latest."""
    first = (len(sums) - 1) // CHECK_EVERY * CHECK_EVERY
    latest = torch.stack(sums[first:])[:, 0]
    bad = (~torch.isfinite(latest)).nonzero().flatten().tolist()
    if bad:
        raise TrainingError(
            f"epoch {epoch}, step {first + bad[0] + 1}: the loss is {latest[bad[0]].item()}; "
            "lower training.learning_rate"
        )


def _validate(run: _Run, epoch: int) -> Evaluation:
    spec, size = run.spec, run.source.size
    loader = batches(
        WholeChips(run.source, run.validation, run.legend),
        # about as many pixels at once as in training
        batch=max(1, spec.batch * spec.crop**2 // size**2),
        workers=spec.loader_workers,
        pin_memory=run.device.type == "cuda",
    )
    try:
        return evaluate(run.model, loader, run.loss, device=run.device, autocast=run.autocast())
    except TrainingError as error:
        raise TrainingError(f"epoch {epoch}: {error}") from error


def _checkpoint(
    run: _Run, identity: str, done: list[EpochRecord], last: Checkpoint | None
) -> Checkpoint:
    """The state after the newest epoch of ``done``; it is the best if it beats all before it."""
    state = _on_cpu(run.model.state_dict())
    newest = done[-1]
    improved = last is None or newest.beats(done[last.best_epoch - 1])
    return Checkpoint(
        fingerprint=identity,
        history=[record.model_dump() for record in done],
        model=state,
        optimiser=run.optimiser.state_dict(),
        best_epoch=newest.epoch if improved or last is None else last.best_epoch,
        best_state=state if improved or last is None else last.best_state,
    )


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy with plain strides, which is what safetensors takes."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
