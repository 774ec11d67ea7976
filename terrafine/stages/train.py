"""train: chips -> model bundle, once on all chips (preliminary) and once on those that agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from terrafine.chips import ChipStore, band_statistics, open_chips
from terrafine.errors import TrainingError
from terrafine.export import BundleInfo, save_bundle
from terrafine.models import RawInput, RawModel, build_network
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, read_json
from terrafine.stages.filter import CHIPS
from terrafine.training import TrainingResult, train


def _preliminary(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(job.output(needed["label"], "chips"))
    epochs = job.spec.training.preliminary_epochs or job.spec.training.epochs
    return _fit(job, folder, store, store.indexes("train").tolist(), epochs, "train preliminary")


def _final(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(job.output(needed["label"], "chips"))
    chips = read_json(job.output(needed["filter"], "agreement"), CHIPS)
    kept = [chip.index for chip in chips if chip.kept]
    return _fit(job, folder, store, kept, job.spec.training.epochs, "train")


def _fit(
    job: Job, folder: Path, store: ChipStore, chips: Sequence[int], epochs: int, heading: str
) -> Outcome:
    spec, legend = job.spec, store.legend
    store.verify()
    if not chips:
        raise TrainingError(
            f"{spec.name}: no chip is left to train on; lower filter.min_agreement or "
            "chips.max_missing"
        )
    mean_C, std_C = band_statistics(store, np.asarray(chips))
    network = build_network(
        spec.model, bands=store.bands, classes=len(legend.classes), seed=spec.seed
    )
    model = RawModel(RawInput(mean_C.tolist(), std_C.tolist(), store.fill), network)
    result = train(
        store,
        train=chips,
        validation=store.indexes("validation").tolist(),
        model=model,
        legend=legend,
        class_weights=spec.class_weights(),
        spec=spec.training,
        epochs=epochs,
        seed=spec.seed,
        checkpoints=folder / "checkpoints",
        heading=heading,
    )
    model.load_state_dict(result.best_state)
    info = BundleInfo(
        model=spec.model,
        bands=spec.imagery.bands,
        scale=spec.imagery.scale,
        fill=store.fill,
        mean=tuple(mean_C.tolist()),
        std=tuple(std_C.tolist()),
        legend=legend,
        provenance={"run": spec.name, "spec": spec.digest(), "best_epoch": result.best_epoch},
    )
    save_bundle(folder / "model", model, info)
    shutil.rmtree(folder / "checkpoints")
    return _outcome(folder, result, len(chips))


def _outcome(folder: Path, result: TrainingResult, chips: int) -> Outcome:
    history = [record.model_dump() for record in result.history]
    (folder / "history.json").write_text(json.dumps(history, indent=1))
    best = result.history[result.best_epoch - 1]
    return Outcome(
        {"model": Path("model"), "history": Path("history.json")},
        {
            "chips": chips,
            "epochs": len(history),
            "best_epoch": result.best_epoch,
            "validation_agreement": round(best.validation_agreement, 4),
        },
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
