"""What the report shows, gathered from the stages' manifests and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from terrafine.accuracy import AccuracyReport, Front, GateDecision
from terrafine.errors import StageError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import UInt8Array
from terrafine.pruning import PruningRecord
from terrafine.publish import (
    ReportData,
    View,
    ZoomView,
    most_different,
    paint_points,
    render_report,
)
from terrafine.raster import ClassRaster, Mosaic, Points, open_class_raster
from terrafine.spec import resolve_in
from terrafine.stages.adopt import made_release
from terrafine.stages.assess import EVIDENCE, open_reference
from terrafine.stages.engine import Job, Manifest, read_json, versions
from terrafine.stages.filter import filtered_chips, label_confusion
from terrafine.training import EpochRecord

Read = Callable[[Window], npt.NDArray[Any]]

# Pixels of the longer side of a panel; larger places are shown at every n-th pixel.
_PANEL = 2000
# Rows read at once for a panel.
_ROWS = 1024


@dataclass(frozen=True)
class MapLayers:
    """A zone of a finished map. ``read(window, array)``; ``pixels`` of every class code;
    ``accuracy`` of the map as stored."""

    read: Callable[..., UInt8Array]
    pixels: Mapping[int, int]
    release: str
    accuracy: AccuracyReport | None


def write_report(
    job: Job,
    needed: Mapping[str, Manifest],
    mosaic: Mosaic,
    path: Path,
    layers: MapLayers | None,
) -> None:
    """Render the report of one zone; without ``layers`` that of a refused model."""
    spec, legend = job.spec, job.spec.resolve_legend()
    readers = _readers(job, mosaic, layers)
    view = _view(mosaic, mosaic.window, readers)
    data = ReportData(
        title=spec.publish.title or spec.name,
        created=datetime.now(UTC),
        legend=legend,
        grid=mosaic.grid,
        view=view,
        bands=spec.imagery.bands,
        zooms=_zooms(job, mosaic, view, readers) if layers else (),
        class_pixels=None if layers is None else layers.pixels,
        notes=spec.publish.notes,
        provenance=_provenance(job, needed, layers),
        spec_text=spec.to_yaml(),
        reference_title=f"Reference: {spec.assess.reference.file}" if spec.assess else "",
        accuracy=layers.accuracy if layers else None,
        front=_front(job),
    )
    data = _adopted(job, needed, data) if "adopt" in needed else _trained(job, needed, data)
    path.write_text(render_report(data), encoding="utf-8")


def _adopted(job: Job, needed: Mapping[str, Manifest], data: ReportData) -> ReportData:
    """With the verdict that the champion was released with."""
    info = made_release(job, needed["adopt"]).info
    return replace(data, gate=info.gate, model=info.model)


def _trained(job: Job, needed: Mapping[str, Manifest], data: ReportData) -> ReportData:
    """With what the run's own training and assessment left."""
    evidence = read_json(job.output(needed["assess"], "evidence"), EVIDENCE)
    agreement = filtered_chips(job, needed["filter"])["agreement"].to_numpy()
    return replace(
        data,
        accuracy=data.accuracy or evidence.report,
        product_accuracy=evidence.product,
        difference=evidence.against_product,
        gate=read_json(job.output(needed["gate"], "decision"), TypeAdapter(GateDecision)),
        preliminary_history=_history(job, needed["train-preliminary"]),
        history=_history(job, needed["train"]),
        pruning=_pruning(job, needed["prune"]),
        model=str(needed["assess"].metrics["model"]),
        agreement=agreement[np.isfinite(agreement)],
        agreement_threshold=job.spec.filter.min_agreement,
        label_confusion=label_confusion(job, needed["filter"]),
        label_confusion_source=job.spec.training.label_confusion or "",
    )


def _readers(job: Job, mosaic: Mosaic, layers: MapLayers | None) -> dict[str, Read]:
    """Name of a view's array -> how to read it."""
    readers: dict[str, Read] = {"image_CHW": lambda window: mosaic.read(window)[0]}
    if job.spec.labels is not None:
        labels = open_class_raster(job.spec.labels, job.spec.resolve_legend(), job.data)
        readers["product_HW"] = lambda window: labels.read(mosaic.grid, window)
    reference = None if job.spec.assess is None else open_reference(job.spec, job.data)
    if isinstance(reference, ClassRaster):
        readers["reference_HW"] = lambda window: reference.read(mosaic.grid, window)
    elif reference is not None:
        points = reference.to_crs(mosaic.grid.crs)
        readers["reference_HW"] = lambda window: _painted(points, mosaic.grid, window)
    if layers is not None:
        readers["map_HW"] = layers.read
        readers["confidence_HW"] = lambda window: layers.read(window, "confidence")
    return readers


def _view(mosaic: Mosaic, window: Window, readers: Mapping[str, Read]) -> View:
    step = max(1, -(-max(window.shape) // _PANEL))
    arrays = {name: _decimated(read, window, step) for name, read in readers.items()}
    return View(window=window, fill=mosaic.fill, step=step, **arrays)


def _decimated(read: Read, window: Window, step: int) -> npt.NDArray[Any]:
    """Every ``step``-th pixel of a window, read some rows at a time."""
    rows = max(step, _ROWS // step * step)
    parts = []
    for row in range(window.row, window.stop_row, rows):
        part = Window(row, window.col, min(rows, window.stop_row - row), window.width)
        parts.append(read(part)[..., ::step, ::step])
    joined: npt.NDArray[Any] = np.concatenate(parts, axis=-2)
    return joined


def _zooms(
    job: Job, mosaic: Mosaic, view: View, readers: Mapping[str, Read]
) -> tuple[ZoomView, ...]:
    assert view.map_HW is not None, "zooms need a map"
    if view.product_HW is None:
        return ()
    options = job.spec.publish
    found = most_different(
        view.map_HW,
        view.product_HW,
        window=view.window,
        size=options.zoom_size,
        count=options.zooms,
        step=view.step,
    )
    return tuple(ZoomView(zoom, _view(mosaic, zoom.window, readers)) for zoom in found)


def _painted(points: Points, grid: PixelGrid, window: Window) -> UInt8Array:
    # a point outside the zone's projection has no finite coordinates
    here = np.isfinite(points.x) & np.isfinite(points.y)
    pixels = [grid.pixel_of(x, y) for x, y in zip(points.x[here], points.y[here], strict=True)]
    rows, cols = np.array(pixels, np.int64).reshape(-1, 2).T
    return paint_points(window.shape, rows - window.row, cols - window.col, points.codes[here])


def _history(job: Job, manifest: Manifest) -> list[dict[str, float]]:
    epochs = read_json(job.output(manifest, "history"), TypeAdapter(list[EpochRecord]))
    return [epoch.model_dump(exclude={"validation_recall"}) for epoch in epochs]


def _pruning(job: Job, manifest: Manifest) -> PruningRecord | None:
    if "pruning" not in manifest.outputs:
        return None
    return read_json(job.output(manifest, "pruning"), TypeAdapter(PruningRecord))


def _front(job: Job) -> Front | None:
    if job.spec.publish.front is None:
        return None
    path = resolve_in(job.data, job.spec.publish.front)
    try:
        return Front.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StageError(
            f"publish.front {path}: not the front.json of a `terrafine compare --speed` "
            f"({error.error_count()} things in it are not as written there); copy it again"
        ) from error


def _provenance(
    job: Job, needed: Mapping[str, Manifest], layers: MapLayers | None
) -> dict[str, Any]:
    sources = {file: sha for manifest in needed.values() for file, sha in manifest.sources.items()}
    return {
        "run": {
            "spec digest": job.spec.digest(),
            "seed": job.spec.seed,
            "release": layers.release if layers else "none: the gate refused the model",
        },
        "stages": [
            {"stage": m.stage, "digest": m.digest[:12], "seconds": m.seconds}
            for m in needed.values()
        ],
        "data files (SHA-256)": sources,
        "versions": versions(),
    }
