"""filter: drop the training chips on which preliminary model and product hardly agree.

Where the spec asks for it, also estimate from the two how the product errs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import torch
from pyarrow import ArrowException
from pydantic import TypeAdapter

from terrafine.accuracy.confident import confident_confusion
from terrafine.accuracy.published import published_confusion
from terrafine.chips import TRAIN, VALIDATION, ChipStore, agreement, open_chips, parquet
from terrafine.errors import StageError
from terrafine.export import load_bundle
from terrafine.legend import NO_CLASS, UInt8Array
from terrafine.models import RawModel
from terrafine.progress import progress
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, read_json
from terrafine.stages.label import chips_place
from terrafine.training import choose_device
from terrafine.training.data import WholeChips
from terrafine.training.feed import read_ahead
from terrafine.training.learner import autocast
from terrafine.training.loss import IGNORED, Confusion, mean_around

_TABLE = "chips.parquet"
_CONFUSION = "confusion.json"
_CONFUSION_FORMAT = TypeAdapter(Confusion)
# Pixels that the product's errors are estimated from: 100 MB of probabilities of 24 classes.
_PIXELS = 1_000_000


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(chips_place(job, needed["label"]))
    model, _ = load_bundle(
        job.output(needed["train-preliminary"], "model"), legend=job.spec.resolve_legend()
    )
    table = store.table.copy()
    chosen = store.indexes(TRAIN)
    values = _agreements(job, store, model, chosen)
    table.loc[chosen, "agreement"] = values
    table["kept"] = table["agreement"] >= job.spec.filter.min_agreement
    (folder / _TABLE).write_bytes(parquet(table))
    kept = int(table["kept"].sum())
    outputs = {"chips": Path(_TABLE)}
    if job.spec.training.label_confusion == "estimated":
        confusion = _confusion(job, store, model)
        (folder / _CONFUSION).write_bytes(_CONFUSION_FORMAT.dump_json(confusion, indent=1))
        outputs["confusion"] = Path(_CONFUSION)
    return Outcome(
        outputs,
        {
            "chips": len(chosen),
            "kept": kept,
            "dropped": len(chosen) - kept,
            "mean_agreement": round(float(np.mean(values)), 4),
        },
    )


def _agreements(
    job: Job, store: ChipStore, model: RawModel, chips: npt.NDArray[np.int64]
) -> list[float]:
    codes = np.full(256, NO_CLASS, np.uint8)
    codes[: len(store.legend.codes)] = store.legend.codes
    values = []
    with progress("filter", total=len(chips), unit="chip") as task:
        for logits_KHW, target_HW in _predicted(job, store, model, chips):
            best_HW = logits_KHW.argmax(0).cpu().numpy()
            values.append(agreement(codes[best_HW], codes[target_HW]))
            task.advance(agreement=values[-1])
    return values


def _confusion(job: Job, store: ChipStore, model: RawModel) -> Confusion:
    """How the product errs (:func:`confident_confusion`), on chips no model was trained on."""
    chips = store.indexes(VALIDATION)
    rng = np.random.default_rng(job.spec.seed)
    probabilities, labels = [], []
    with progress("label errors", total=len(chips), unit="chip") as task:
        for logits_KHW, target_HW in _predicted(job, store, model, chips):
            around_1KHW = mean_around(
                logits_KHW[None].float().softmax(dim=1), job.spec.training.label_window
            )
            labelled = np.flatnonzero(target_HW != IGNORED)
            some = rng.permutation(labelled)[: max(1, _PIXELS // len(chips))]
            probabilities.append(around_1KHW[0].flatten(1).cpu().numpy()[:, some].T)
            labels.append(target_HW.ravel()[some])
            task.advance()
    found_KK = confident_confusion(np.concatenate(probabilities), np.concatenate(labels))
    return tuple(tuple(row) for row in found_KK.tolist())


def _predicted(
    job: Job, store: ChipStore, model: RawModel, chips: npt.NDArray[np.int64]
) -> Iterator[tuple[torch.Tensor, UInt8Array]]:
    """Logits (K, H, W) and targets (H, W) uint8, IGNORED without a label, of whole chips."""
    spec = job.spec.training
    device = choose_device(spec.device)
    model.to(device).eval()
    reading = read_ahead(
        WholeChips(store, chips, store.legend),
        [[position] for position in range(len(chips))],
        workers=spec.loader_workers,
        pin_memory=device.type == "cuda",
    )
    with closing(reading):
        for image_NCHW, target_NHW in reading:
            with torch.inference_mode(), autocast(spec, device):
                logits_NKHW = model(image_NCHW.to(device, non_blocking=True))
            yield logits_NKHW[0], target_NHW[0].numpy()


def label_confusion(job: Job, filtered: Manifest | None) -> Confusion | None:
    """How the label product errs, where the spec wants that to count and it is known.

    It is estimated by the filter stage, ``filtered``: None before that has run. StageError when
    what it wrote is not there.
    """
    match job.spec.training.label_confusion:
        case "published":
            return published_confusion(job.spec.label_product.crosswalk, job.spec.resolve_legend())
        case "estimated" if filtered is not None:
            return read_json(job.output(filtered, "confusion"), _CONFUSION_FORMAT)
    return None


def filtered_chips(job: Job, manifest: Manifest) -> geopandas.GeoDataFrame:
    """The chip store's table with ``agreement`` (NaN: no training chip) and ``kept``.

    StageError when it is not as the filter stage wrote it.
    """
    path = job.output(manifest, "chips")
    try:
        table = geopandas.read_parquet(path)
        return table.astype({"agreement": np.float64, "kept": bool})
    except (OSError, ValueError, KeyError, ArrowException) as error:
        raise StageError(
            f"{path}: cannot be read back ({type(error).__name__}), it is not as it was "
            "written; delete it and run again"
        ) from error


FILTER = Stage(
    name="filter", needs=("label", "train-preliminary"), sections=("filter",), work=_work
)
