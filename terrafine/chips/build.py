"""From mosaics and a label product to a chip store (Dong et al. 2020, section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import shapely

from terrafine.chips.split import split_chips
from terrafine.chips.store import ChipStore, ChipWriter, ZoneGrid, new_store, open_chips
from terrafine.errors import ChipStoreError
from terrafine.geometry import Window
from terrafine.legend import NO_CLASS, Legend, UInt8Array
from terrafine.progress import Task, progress
from terrafine.raster import ClassRaster, Mosaic, Scene, check_overlap
from terrafine.spec import MapSpec

_LONLAT = "EPSG:4326"


@dataclass(frozen=True)
class _Chip:
    """One chip that was kept: where it lies and what is on it."""

    mosaic: Mosaic
    window: Window
    share_K: npt.NDArray[np.float64]
    missing_share: float
    sources: tuple[str, ...]
    sha256: str


def build_chips(
    path: Path, *, spec: MapSpec, mosaics: Mapping[str, Mosaic], labels: ClassRaster
) -> ChipStore:
    """Cut every mosaic into chips on its global grid, with the product's labels.

    A chip is kept when at most ``chips.max_missing`` of its pixels lack image or label; where the
    image is missing the label is 0. One chip is in memory at a time. The store appears whole or
    not at all. RasterError / LegendError for the inputs; ChipStoreError when a scene holds no
    valid pixel, no chip can be kept, the chips cannot be split, or ``path`` cannot be written.
    """
    check_overlap(labels, mosaics.values())
    size = spec.chips.size
    tiles = [
        (mosaic, tile)
        for mosaic in mosaics.values()
        for tile in mosaic.window.tiles(size)
        if mosaic.touches(tile)
    ]
    bands = len(spec.imagery.bands)
    with new_store(path) as folder:
        writer = ChipWriter(folder, capacity=len(tiles), bands=bands, size=size)
        with progress("label", total=len(tiles), unit="chip") as task:
            cutter = _Cutter(spec, spec.resolve_legend(), labels, writer)
            chips, seen = _cut(tiles, cutter, task)
        _require_valid_scenes(mosaics, seen, size)
        if not chips:
            raise ChipStoreError(
                f"{spec.name}: none of {len(tiles)} chips of {size} x {size} has image and label "
                f"on at least {1 - spec.chips.max_missing:.0%} of its pixels; choose a smaller "
                "chips.size or a larger chips.max_missing, or check where the product lies"
            )
        writer.close(_table(chips, spec), _attributes(spec, mosaics))
    return open_chips(path)


@dataclass(frozen=True)
class _Cutter:
    """What turns a tile into a chip of the new store."""

    spec: MapSpec
    legend: Legend
    labels: ClassRaster
    writer: ChipWriter

    def cut(self, mosaic: Mosaic, tile: Window) -> tuple[_Chip | None, set[int]]:
        """The chip, written, or None if it is not kept; and the numbers of the scenes on it."""
        allowed = self.spec.chips.max_missing
        image_CHW, source_HW = mosaic.read(tile)
        numbers = {int(number) for number in np.unique(source_HW) if number}
        if np.mean(source_HW == 0) > allowed:
            return None, numbers
        label_HW: UInt8Array = np.where(
            source_HW == 0, np.uint8(NO_CLASS), self.labels.read(mosaic.grid, tile)
        )
        missing_share = float(np.mean(label_HW == NO_CLASS))
        if missing_share > allowed:
            return None, numbers
        counts = np.bincount(label_HW.ravel(), minlength=256)
        scenes = self.spec.imagery.scenes
        chip = _Chip(
            mosaic=mosaic,
            window=tile,
            share_K=counts[list(self.legend.codes)] / label_HW.size,
            missing_share=missing_share,
            sources=tuple(scenes[number - 1].name for number in sorted(numbers)),
            sha256=self.writer.append(image_CHW, label_HW),
        )
        return chip, numbers


def _cut(
    tiles: Sequence[tuple[Mosaic, Window]], cutter: _Cutter, task: Task
) -> tuple[list[_Chip], set[int]]:
    """The chips kept, and the numbers of the scenes that gave a pixel to any tile."""
    chips: list[_Chip] = []
    seen: set[int] = set()
    for mosaic, tile in tiles:
        chip, numbers = cutter.cut(mosaic, tile)
        seen |= numbers
        if chip is not None:
            chips.append(chip)
        task.advance(kept=str(len(chips)))
    return chips, seen


def _require_valid_scenes(mosaics: Mapping[str, Mosaic], seen: set[int], size: int) -> None:
    for mosaic in mosaics.values():
        for number, scene in zip(mosaic.numbers, mosaic.scenes, strict=True):
            if number not in seen:
                _require_valid_pixels(scene, size)


def _require_valid_pixels(scene: Scene, size: int) -> None:
    """A scene that gave no pixel may lie under others; refuse it when it has none at all."""
    for tile in scene.window.tiles(size):
        if (scene.read(tile) != scene.fill).all(axis=0).any():
            return
    raise ChipStoreError(
        f"scene {scene.name} ({scene.files[0].path}): every pixel is missing (value {scene.fill} "
        "or nodata in at least one band); take the scene out of the spec, or correct "
        "imagery.nodata"
    )


def _table(chips: Sequence[_Chip], spec: MapSpec) -> geopandas.GeoDataFrame:
    """One row per chip; see :class:`ChipStore`."""
    legend = spec.resolve_legend()
    stride = spec.chips.size * spec.chips.block
    blocks = [(c.mosaic.zone, c.window.row // stride, c.window.col // stride) for c in chips]
    share_NK = np.stack([chip.share_K for chip in chips])
    footprints = _footprints(chips)
    split = split_chips(
        footprints,
        blocks,
        share_NK > 0,
        fraction=spec.chips.validation_fraction,
        seed=spec.seed,
    )
    columns: dict[str, Any] = {
        "id": [f"{c.mosaic.zone}-r{c.window.row}-c{c.window.col}" for c in chips],
        "zone": [c.mosaic.zone for c in chips],
        "crs": [c.mosaic.grid.crs for c in chips],
        "row": [c.window.row for c in chips],
        "col": [c.window.col for c in chips],
        "transform": [list(c.mosaic.grid.transform(c.window)[:6]) for c in chips],
        "split": split,
        **{f"share_{name}": share_NK[:, k] for k, name in enumerate(legend.names)},
        "missing_share": [c.missing_share for c in chips],
        "sources": [list(c.sources) for c in chips],
        "sha256": [c.sha256 for c in chips],
    }
    return geopandas.GeoDataFrame(columns, geometry=footprints, crs=_LONLAT)


def _footprints(chips: Sequence[_Chip]) -> geopandas.GeoSeries:
    """Outlines in degrees, in the chips' order."""
    outlines: list[Any] = [None] * len(chips)
    for crs in {chip.mosaic.grid.crs for chip in chips}:
        members = [i for i, chip in enumerate(chips) if chip.mosaic.grid.crs == crs]
        boxes = [shapely.box(*chips[i].mosaic.grid.bounds(chips[i].window)) for i in members]
        turned = geopandas.GeoSeries(boxes, crs=crs).to_crs(_LONLAT)
        for i, outline in zip(members, turned, strict=True):
            outlines[i] = outline
    return geopandas.GeoSeries(outlines, crs=_LONLAT)


def _attributes(spec: MapSpec, mosaics: Mapping[str, Mosaic]) -> dict[str, Any]:
    grids = {zone: mosaic.grid for zone, mosaic in mosaics.items()}
    return {
        "legend": spec.resolve_legend(),
        "bands": spec.imagery.bands,
        "fill": next(iter(mosaics.values())).fill,
        "size": spec.chips.size,
        "zones": {
            zone: ZoneGrid(crs=g.crs, dx=g.dx, dy=g.dy, x0=g.x0, y0=g.y0)
            for zone, g in grids.items()
        },
        "scenes": tuple(scene.name for scene in spec.imagery.scenes),
        "spec_sha256": spec.digest("seed", "legend", "imagery", "labels", "chips"),
    }
