"""prune: a trained model -> a smaller one (Dong et al. 2020, section 3.4), or the same one.

First the trained model is trained on, its filters nearest the geometric median zeroed after every
epoch; then the zeroed filters are removed, and the compact network is trained on. Both trainings
run as any other does, on Ray and resumable. What is handed on is never worse on the validation
chips than the compact network was before it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import Tensor

from terrafine.chips import open_chips
from terrafine.errors import ModelError
from terrafine.export import BundleInfo, load_bundle, save_bundle
from terrafine.export.bundle import WEIGHTS
from terrafine.models import RawModel, changed_channels, describe_spec
from terrafine.progress import warn
from terrafine.pruning import (
    Cost,
    PruningRecord,
    plan_pruning,
    pruned_layers,
    removed_channels,
    without_zeroed,
)
from terrafine.spec import TrainingSpec
from terrafine.stages.engine import Job, Manifest, Outcome, Stage
from terrafine.stages.filter import filtered_chips, label_confusion
from terrafine.stages.fit import TrainingTask
from terrafine.stages.label import chips_place
from terrafine.stages.train import clear_training, require_chips, training_place, training_task
from terrafine.storage import Storage
from terrafine.training import TrainingResult

RECORD = "pruning.json"
# Of the learning rate of the first training; the network is trained already.
_GENTLER = 0.1


@dataclass(frozen=True)
class _Pruning:
    """A pruning under way."""

    job: Job
    folder: Path
    place: Storage
    task: TrainingTask
    parent: BundleInfo

    def soften(self, model: RawModel) -> TrainingResult:
        """Train on, with the filters nearest the median zeroed after every epoch."""
        spec = self.job.spec.prune
        task = self._task("zeroed", model, spec.epochs, heading="prune")
        task = task.model_copy(
            # a mean of the weights of several epochs would not be zeroed
            update={"prune": spec, "training": task.training.model_copy(update={"ema": None})}
        )
        return self.job.trainer(task)

    def fine_tune(self, compact: RawModel) -> TrainingResult | None:
        """Train the compact network on, or not at all."""
        epochs = self.job.spec.prune.fine_tune_epochs
        if not epochs:
            return None
        channels = changed_channels(compact.network, self.task.model)
        task = self._task("compact", compact, epochs, heading="fine-tune")
        return self.job.trainer(task.model_copy(update={"channels": channels}))

    def save(self, compact: RawModel, record: PruningRecord) -> BundleInfo:
        """The compact network as a bundle, which names the one that it was made from."""
        provenance = {
            "run": self.job.spec.name,
            "spec": self.job.spec.digest(),
            "pruned_from": self.parent.digest,
            "prune": self.job.spec.prune.model_dump(mode="json"),
            "fewer_macs": round(record.fewer_macs, 4),
        }
        info = self.parent.model_copy(
            update={
                "channels": changed_channels(compact.network, self.task.model),
                "provenance": provenance,
            }
        )
        return save_bundle(self.folder / "model", compact, info)

    def _task(self, name: str, model: RawModel, epochs: int, *, heading: str) -> TrainingTask:
        """A training that starts from the weights of ``model``, which lie where workers look."""
        place = self.place / name
        place.write(WEIGHTS, _weights(model))
        update = {
            "storage": place.location,
            "start": place.location,
            "epochs": epochs,
            "heading": heading,
        }
        return self.task.model_copy(update=update)


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    trained = job.output(needed["train"], "model")
    if not job.spec.prune.active:
        return Outcome({"model": trained}, {"removed_filters": 0})
    model, parent = load_bundle(trained, legend=job.spec.resolve_legend())
    _require_same(job, parent, trained)
    pruning = _open(job, folder, needed, parent)
    plan = plan_pruning(model.network, job.spec.prune, bands=len(parent.bands))
    softened = pruning.soften(model)
    model.load_state_dict(softened.best_state)
    compact = RawModel(model.raw, without_zeroed(model.network, plan))
    tuned = pruning.fine_tune(compact)
    better = _better(softened, tuned)
    if better is not softened:
        compact.load_state_dict(better.best_state)
    record = PruningRecord(
        spec=job.spec.prune,
        parent=parent.digest,
        layers=pruned_layers(plan, removed_channels(model.network, plan)),
        before=_cost(model, parent),
        after=_cost(compact, parent),
        agreement={
            "trained": float(needed["train"].metrics["validation_agreement"]),
            "zeroed": round(_best(softened), 4),
            "compact": round(_best(better), 4),
        },
        worse_tuning=None if tuned is None or tuned is better else round(_best(tuned), 4),
    )
    pruning.save(compact.eval(), record)
    (folder / RECORD).write_text(record.model_dump_json())
    _write_history(folder / "history.json", softened, tuned)
    return Outcome(
        {"model": Path("model"), "pruning": Path(RECORD), "history": Path("history.json")},
        _figures(record),
        partial(clear_training, pruning.place),
    )


def _open(job: Job, folder: Path, needed: Mapping[str, Manifest], parent: BundleInfo) -> _Pruning:
    store = open_chips(chips_place(job, needed["label"]))
    chips = np.flatnonzero(filtered_chips(job, needed["filter"])["kept"]).tolist()
    require_chips(job, store, chips)
    place = training_place(job, folder)
    task = training_task(
        job,
        folder,
        store,
        chips,
        scaling=(parent.mean, parent.std),
        confusion=label_confusion(job, needed["filter"]),
        epochs=job.spec.prune.epochs,
        place=place,
        heading="prune",
    )
    gentler = {"training": _gentler(job)}
    return _Pruning(job, folder, place, task.model_copy(update=gentler), parent)


def _gentler(job: Job) -> TrainingSpec:
    spec = job.spec.training
    rate = job.spec.prune.learning_rate or _GENTLER * spec.learning_rate
    return spec.model_copy(update={"learning_rate": rate})


def _require_same(job: Job, parent: BundleInfo, bundle: Path) -> None:
    """A bundle exchanged since its training may be of another network."""
    for what, wanted, found in (
        ("network", job.spec.model, parent.model),
        ("bands", job.spec.imagery.bands, parent.bands),
    ):
        if wanted != found:
            raise ModelError(
                f"{bundle}: its {what} ({found}) is not the spec's ({wanted}); delete "
                f"{job.workdir / 'train'} and train again"
            )


def _cost(model: RawModel, parent: BundleInfo) -> Cost:
    found = describe_spec(
        parent.model,
        bands=len(parent.bands),
        classes=len(parent.legend.classes),
        channels=changed_channels(model.network, parent.model),
    )
    return Cost(**{key: found[key] for key in Cost.model_fields})


def _weights(model: RawModel) -> bytes:
    state: dict[str, Tensor] = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    return safetensors.torch.save(state)


def _best(result: TrainingResult) -> float:
    return result.history[result.best_epoch - 1].validation_agreement


def _better(softened: TrainingResult, tuned: TrainingResult | None) -> TrainingResult:
    """The fine-tuning's result, unless the network that it began with agrees with more."""
    if tuned is None:
        return softened
    # what is no number is not better
    if _best(tuned) >= _best(softened):
        return tuned
    warn(
        f"prune: fine-tuning left a network that agrees with {_best(tuned):.2%} of the validation "
        f"pixels; the one that it began with agrees with {_best(softened):.2%} and is handed on: "
        "lower prune.learning_rate or raise prune.fine_tune_epochs"
    )
    return softened


def _write_history(path: Path, softened: TrainingResult, tuned: TrainingResult | None) -> None:
    phases = {"zeroed": softened, "compact": tuned}
    history = {
        name: [record.model_dump() for record in result.history]
        for name, result in phases.items()
        if result is not None
    }
    path.write_text(json.dumps(history, indent=1))


def _figures(record: PruningRecord) -> dict[str, float | int | str]:
    return {
        "removed_filters": record.removed,
        "parameters": record.after.parameters,
        "fewer_parameters": round(record.fewer_parameters, 4),
        "fewer_macs": round(record.fewer_macs, 4),
        "agreement_before": record.agreement["trained"],
        "validation_agreement": record.agreement["compact"],
    }


PRUNE = Stage(
    name="prune",
    needs=("label", "filter", "train"),
    sections=("model", "training", "prune"),
    work=_work,
    resumable=True,
)
