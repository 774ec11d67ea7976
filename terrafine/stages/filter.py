"""filter: drop the training chips on which preliminary model and product hardly agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import geopandas
import numpy as np
import torch
from pyarrow import ArrowException

from terrafine.chips import TRAIN, ChipStore, agreement, open_chips, parquet
from terrafine.errors import StageError
from terrafine.export import load_bundle
from terrafine.models import RawModel
from terrafine.progress import progress
from terrafine.stages.engine import Job, Manifest, Outcome, Stage
from terrafine.stages.label import chips_place
from terrafine.training import choose_device

_TABLE = "chips.parquet"


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(chips_place(job, needed["label"]))
    model, _ = load_bundle(
        job.output(needed["train-preliminary"], "model"), legend=job.spec.resolve_legend()
    )
    table = store.table.copy()
    chosen = store.indexes(TRAIN)
    values = _agreements(store, model, chosen.tolist(), choose_device(job.spec.training.device))
    table.loc[chosen, "agreement"] = values
    table["kept"] = table["agreement"] >= job.spec.filter.min_agreement
    (folder / _TABLE).write_bytes(parquet(table))
    kept = int(table["kept"].sum())
    return Outcome(
        {"chips": Path(_TABLE)},
        {
            "chips": len(chosen),
            "kept": kept,
            "dropped": len(chosen) - kept,
            "mean_agreement": round(float(np.mean(values)), 4),
        },
    )


def _agreements(
    store: ChipStore, model: RawModel, indexes: list[int], device: torch.device
) -> list[float]:
    model.to(device).eval()
    values = []
    with progress("filter", total=len(indexes), unit="chip") as task, torch.inference_mode():
        for index in indexes:
            image_NCHW = torch.from_numpy(store.image(index)[None].astype(np.int32))
            best_HW = model(image_NCHW.to(device))[0].argmax(0).cpu().numpy()
            predicted_HW = store.legend.code_table[best_HW]
            values.append(agreement(predicted_HW, store.label(index)))
            task.advance(agreement=values[-1])
    return values


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
