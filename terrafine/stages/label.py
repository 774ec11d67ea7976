"""label: imagery and label product -> chips (Dong et al. 2020, section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from terrafine.chips import build_chips
from terrafine.raster import check_overlap, open_class_raster, open_mosaics
from terrafine.spec import MapSpec
from terrafine.stages.engine import CATALOGUE, Job, Manifest, Metric, Outcome, Stage
from terrafine.storage import Storage

# Says where the chips are when they are not in the work directory.
_POINTER = "chips.location"


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    spec = job.spec
    legend = spec.resolve_legend()
    mosaics = open_mosaics(spec.imagery, job.data)
    labels = open_class_raster(spec.label_product, legend, job.data)
    check_overlap(labels, list(mosaics.values()))
    store = build_chips(
        _place(spec, folder),
        spec=spec,
        mosaics=mosaics,
        labels=labels,
        runner=job.chip_runner(spec.chips.workers),
    )
    metrics: dict[str, Metric] = {
        "chips": len(store),
        "train": len(store.indexes("train")),
        "validation": len(store.indexes("validation")),
    }
    for name in legend.names:
        metrics[f"share_{name}"] = round(float(np.mean(store.table[f"share_{name}"])), 4)
    if spec.chips.storage is None:
        return Outcome({"chips": Path("chips")}, metrics)
    (folder / _POINTER).write_text(str(store.storage))
    return Outcome({"chips": Path(_POINTER)}, metrics)


def _place(spec: MapSpec, folder: Path) -> Storage:
    """Where this digest's chips go."""
    if spec.chips.storage is None:
        return Storage.at(folder / "chips")
    return Storage.at(spec.chips.storage) / f"chips-{folder.name.removesuffix('.partial')}"


def chips_place(job: Job, manifest: Manifest) -> str:
    """Path or URL of the chips that the label stage made."""
    output = job.output(manifest, "chips")
    return output.read_text() if output.is_file() else str(output)


def scene_files(spec: MapSpec) -> list[str]:
    """Every imagery file the spec names, or the catalogue."""
    if spec.imagery.catalogue is not None:
        return [CATALOGUE]
    return [file for scene in spec.imagery.scenes for file in scene.files]


LABEL = Stage(
    name="label",
    needs=(),
    sections=("imagery", "labels", "chips"),
    files=lambda spec: [*scene_files(spec), spec.label_product.file],
    work=_work,
    resumable=True,
)
