"""filter: drop the training chips on which preliminary model and product hardly agree.

Where the spec asks for it, also estimate from the two how the product errs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import geopandas
import numpy as np
import torch
from pyarrow import ArrowException
from pydantic import TypeAdapter

from terrafine.accuracy.confident import confident_confusion
from terrafine.accuracy.published import published_confusion
from terrafine.chips import TRAIN, VALIDATION, ChipStore, agreement, open_chips, parquet
from terrafine.errors import StageError
from terrafine.export import load_bundle
from terrafine.models import RawModel
from terrafine.progress import progress
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, read_json
from terrafine.stages.label import chips_place
from terrafine.training import choose_device
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
    model.to(choose_device(job.spec.training.device)).eval()
    values = _agreements(store, model, chosen.tolist())
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


def _agreements(store: ChipStore, model: RawModel, indexes: list[int]) -> list[float]:
    values = []
    with progress("filter", total=len(indexes), unit="chip") as task, torch.inference_mode():
        for index in indexes:
            best_HW = _logits(store, model, index)[0].argmax(0).cpu().numpy()
            predicted_HW = store.legend.code_table[best_HW]
            values.append(agreement(predicted_HW, store.label(index)))
            task.advance(agreement=values[-1])
    return values


def _logits(store: ChipStore, model: RawModel, index: int) -> torch.Tensor:
    """(1, K, H, W) of a whole chip."""
    image_NCHW = torch.from_numpy(store.image(index)[None].astype(np.int32))
    logits: torch.Tensor = model(image_NCHW.to(next(model.parameters()).device))
    return logits


def _confusion(job: Job, store: ChipStore, model: RawModel) -> Confusion:
    """How the product errs (:func:`confident_confusion`), on chips no model was trained on."""
    indexes = store.indexes(VALIDATION).tolist()
    window = job.spec.training.label_window
    probabilities, labels = [], []
    with progress("label errors", total=len(indexes), unit="chip") as task, torch.inference_mode():
        for index in indexes:
            around = mean_around(_logits(store, model, index).float().softmax(dim=1), window)
            target_n = store.legend.index_table[store.label(index)].ravel()
            labelled = np.flatnonzero(target_n != IGNORED)
            rng = np.random.default_rng((job.spec.seed, index))
            some = rng.permutation(labelled)[: max(1, _PIXELS // len(indexes))]
            probabilities.append(around[0].flatten(1)[:, some].T.cpu().numpy())
            labels.append(target_n[some])
            task.advance()
    found_KK = confident_confusion(np.concatenate(probabilities), np.concatenate(labels))
    return tuple(tuple(row) for row in found_KK.tolist())


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
