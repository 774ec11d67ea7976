"""filter: drop the training chips on which preliminary model and product hardly agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from terrafine.chips import agreement, open_chips
from terrafine.export import load_bundle
from terrafine.progress import progress
from terrafine.stages.engine import Job, Manifest, Outcome, Stage


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(job.output(needed["label"], "chips"))
    model, _ = load_bundle(
        job.output(needed["train-preliminary"], "model"), legend=job.spec.resolve_legend()
    )
    model.eval()
    floor = job.spec.filter.min_agreement
    chips = []
    indexes = store.indexes("train")
    with progress("filter", total=len(indexes), unit="chip") as task, torch.inference_mode():
        for index in indexes.tolist():
            logits = model(torch.from_numpy(store.image(index)[None].astype(np.int32)))
            predicted_HW = store.legend.code_table[logits[0].argmax(0).numpy()]
            value = agreement(predicted_HW, store.label(index))
            chips.append({"index": index, "agreement": value, "kept": value >= floor})
            task.advance(agreement=value)
    (folder / "agreement.json").write_text(json.dumps(chips, indent=1))
    kept = sum(chip["kept"] for chip in chips)
    return Outcome(
        {"agreement": Path("agreement.json")},
        {
            "chips": len(chips),
            "kept": kept,
            "dropped": len(chips) - kept,
            "mean_agreement": round(float(np.mean([c["agreement"] for c in chips])), 4),
        },
    )


FILTER = Stage(
    name="filter", needs=("label", "train-preliminary"), sections=("filter",), work=_work
)
