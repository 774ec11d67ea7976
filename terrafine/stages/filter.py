"""filter: drop the training chips on which preliminary model and product hardly agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter

from terrafine.chips import agreement, open_chips
from terrafine.export import load_bundle
from terrafine.progress import progress
from terrafine.stages.engine import Job, Manifest, Outcome, Stage
from terrafine.training import choose_device


class FilteredChip(BaseModel):
    """One training chip: the share of its labelled pixels on which model and product agree."""

    index: int
    agreement: float
    kept: bool


CHIPS = TypeAdapter(list[FilteredChip])


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(job.output(needed["label"], "chips"))
    model, _ = load_bundle(
        job.output(needed["train-preliminary"], "model"), legend=job.spec.resolve_legend()
    )
    device = choose_device(job.spec.training.device)
    model.to(device).eval()
    floor = job.spec.filter.min_agreement
    chips = []
    indexes = store.indexes("train")
    with progress("filter", total=len(indexes), unit="chip") as task, torch.inference_mode():
        for index in indexes.tolist():
            image_NCHW = torch.from_numpy(store.image(index)[None].astype(np.int32))
            best_HW = model(image_NCHW.to(device))[0].argmax(0).cpu().numpy()
            predicted_HW = store.legend.code_table[best_HW]
            value = agreement(predicted_HW, store.label(index))
            chips.append(FilteredChip(index=index, agreement=value, kept=value >= floor))
            task.advance(agreement=value)
    (folder / "agreement.json").write_bytes(CHIPS.dump_json(chips, indent=1))
    kept = sum(chip.kept for chip in chips)
    return Outcome(
        {"agreement": Path("agreement.json")},
        {
            "chips": len(chips),
            "kept": kept,
            "dropped": len(chips) - kept,
            "mean_agreement": round(float(np.mean([c.agreement for c in chips])), 4),
        },
    )


FILTER = Stage(
    name="filter", needs=("label", "train-preliminary"), sections=("filter",), work=_work
)
