"""train: chips -> model bundle, once on all chips (preliminary) and once on those that agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from terrafine.chips import (
    VALIDATION,
    ChipStore,
    band_statistics,
    open_chips,
    require_classes,
)
from terrafine.errors import TrainingError
from terrafine.export import BundleInfo, save_bundle
from terrafine.stages.engine import Job, Manifest, Outcome, Stage
from terrafine.stages.filter import filtered_chips, label_confusion
from terrafine.stages.fit import TrainingTask
from terrafine.stages.label import chips_place
from terrafine.storage import Storage
from terrafine.training import STEPS, TrainingResult
from terrafine.training.loss import Confusion

# Chips whose digests are checked before a training: 400 GB cannot be, and libzstd checks what is
# read in any case.
_VERIFIED = 256
# takes checkpoints and curves until the training is finished
_UNFINISHED = "training"


def _preliminary(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(chips_place(job, needed["label"]))
    epochs = job.spec.training.preliminary_epochs or job.spec.training.epochs
    chips = store.indexes("train").tolist()
    confusion = label_confusion(job, None)
    return _fit(job, folder, store, chips, epochs, confusion, "train preliminary")


def _final(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(chips_place(job, needed["label"]))
    kept = np.flatnonzero(filtered_chips(job, needed["filter"])["kept"]).tolist()
    confusion = label_confusion(job, needed["filter"])
    return _fit(job, folder, store, kept, job.spec.training.epochs, confusion, "train")


def _fit(
    job: Job,
    folder: Path,
    store: ChipStore,
    chips: Sequence[int],
    epochs: int,
    confusion: Confusion | None,
    heading: str,
) -> Outcome:
    require_chips(job, store, chips)
    mean_C, std_C = band_statistics(store, np.asarray(chips))
    place = training_place(job, folder)
    task = training_task(
        job,
        folder,
        store,
        chips,
        scaling=(tuple(mean_C.tolist()), tuple(std_C.tolist())),
        confusion=confusion,
        epochs=epochs,
        place=place,
        heading=heading,
    )
    result = job.trainer(task)
    _save(job, folder, task, result)
    return _outcome(folder, place, result, len(chips))


def require_chips(job: Job, store: ChipStore, chips: Sequence[int]) -> None:
    """Raise an error where the chips cannot be trained on."""
    store.verify(most=_VERIFIED)
    if not chips:
        raise TrainingError(
            f"{job.spec.name}: no chip is left to train on; lower filter.min_agreement or "
            "chips.max_missing"
        )
    require_classes(store, chips, store.indexes(VALIDATION).tolist())


def training_task(
    job: Job,
    folder: Path,
    store: ChipStore,
    chips: Sequence[int],
    *,
    scaling: tuple[tuple[float, ...], tuple[float, ...]],
    confusion: Confusion | None,
    epochs: int,
    place: Storage,
    heading: str,
) -> TrainingTask:
    """A training of the spec's network on these chips; ``scaling``: mean and std of the bands,
    ``confusion``: of the labels, None where it is not to count.
    """
    return TrainingTask(
        chips=store.storage.location,
        train=tuple(chips),
        validation=tuple(store.indexes(VALIDATION).tolist()),
        model=job.spec.model,
        mean=scaling[0],
        std=scaling[1],
        fill=store.fill,
        legend=store.legend,
        class_weights=job.spec.class_weights(),
        confusion=confusion,
        training=job.spec.training,
        epochs=epochs,
        seed=job.spec.seed,
        storage=place.location,
        run=f"{job.spec.name}/{folder.parent.name}",
        heading=heading,
    )


def clear_training(place: Storage, folder: Path) -> None:
    """Remove what a finished training could have gone on from."""
    place.delete(place.names())
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)


def _save(job: Job, folder: Path, task: TrainingTask, result: TrainingResult) -> None:
    model = task.build_model()
    model.load_state_dict(result.best_state)
    spec = job.spec
    info = BundleInfo(
        model=task.model,
        bands=spec.imagery.bands,
        scale=spec.imagery.scale,
        fill=task.fill,
        mean=task.mean,
        std=task.std,
        legend=task.legend,
        provenance={"run": spec.name, "spec": spec.digest(), "best_epoch": result.best_epoch},
    )
    save_bundle(folder / "model", model, info)


def training_place(job: Job, folder: Path) -> Storage:
    """A folder of this stage's own, the same one when the stage is run again."""
    shared = job.spec.training.storage
    if shared is None:
        return Storage.at(folder / _UNFINISHED)
    root = Storage.at(shared if "://" in shared else job.workdir / shared)
    return root / job.spec.name / folder.parent.name / folder.name.removesuffix(".partial")


def _outcome(folder: Path, place: Storage, result: TrainingResult, chips: int) -> Outcome:
    history = [record.model_dump() for record in result.history]
    (folder / "history.json").write_text(json.dumps(history, indent=1))
    (folder / STEPS).write_bytes(place.read(STEPS) or b"")
    best = result.history[result.best_epoch - 1]
    return Outcome(
        {"model": Path("model"), "history": Path("history.json"), "steps": Path(STEPS)},
        {
            "chips": chips,
            "epochs": len(history),
            "best_epoch": result.best_epoch,
            "validation_agreement": round(best.validation_agreement, 4),
        },
        partial(clear_training, place),
    )


TRAIN_PRELIMINARY = Stage(
    name="train-preliminary",
    needs=("label",),
    sections=("model", "training"),
    work=_preliminary,
    resumable=True,
)
TRAIN = Stage(
    name="train",
    needs=("label", "filter"),
    sections=("model", "training"),
    work=_final,
    resumable=True,
)
