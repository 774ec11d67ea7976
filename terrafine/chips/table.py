"""The manifest of a chip store: one row per chip, as GeoParquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import geopandas
import numpy as np
import shapely

from terrafine.chips.plan import BuildPlan
from terrafine.chips.record import ChipRecord
from terrafine.chips.split import split_chips
from terrafine.raster import scene_names

_LONLAT = "EPSG:4326"


def chip_table(chips: Sequence[ChipRecord], plan: BuildPlan) -> geopandas.GeoDataFrame:
    """One row per chip; see :class:`terrafine.chips.ChipStore`."""
    spec, legend = plan.spec, plan.spec.resolve_legend()
    stride = spec.chips.size * spec.chips.block
    places = [plan.place(chip.tile) for chip in chips]
    share_NK = np.array([chip.shares for chip in chips])
    footprints = _footprints(chips, plan)
    split = split_chips(
        footprints,
        [(mosaic.zone, window.row // stride, window.col // stride) for mosaic, window in places],
        share_NK > 0,
        fraction=spec.chips.validation_fraction,
        seed=spec.seed,
    )
    scenes = scene_names(plan.mosaics)
    columns: dict[str, Any] = {
        "id": [f"{m.zone}-r{w.row}-c{w.col}" for m, w in places],
        "position": [chip.position for chip in chips],
        "zone": [m.zone for m, _ in places],
        "crs": [m.grid.crs for m, _ in places],
        "row": [w.row for _, w in places],
        "col": [w.col for _, w in places],
        "transform": [list(m.grid.transform(w)[:6]) for m, w in places],
        "split": split,
        **{f"share_{name}": share_NK[:, k] for k, name in enumerate(legend.names)},
        "missing_share": [chip.missing_share for chip in chips],
        "nodata_share": [chip.nodata_share for chip in chips],
        "agreement": np.full(len(chips), np.nan),
        "sources": [[scenes[number - 1] for number in chip.sources] for chip in chips],
        "sha256": [chip.sha256 for chip in chips],
    }
    return geopandas.GeoDataFrame(columns, geometry=footprints, crs=_LONLAT)


def parquet(table: geopandas.GeoDataFrame) -> bytes:
    """The table's file; equal tables give equal bytes."""
    file = io.BytesIO()
    table.to_parquet(file, index=False)
    return file.getvalue()


def _footprints(chips: Sequence[ChipRecord], plan: BuildPlan) -> geopandas.GeoSeries:
    """Outlines in degrees, in the chips' order."""
    places = [plan.place(chip.tile) for chip in chips]
    outlines: list[Any] = [None] * len(chips)
    for crs in {mosaic.grid.crs for mosaic, _ in places}:
        members = [i for i, (mosaic, _) in enumerate(places) if mosaic.grid.crs == crs]
        boxes = [shapely.box(*places[i][0].grid.bounds(places[i][1])) for i in members]
        turned = geopandas.GeoSeries(boxes, crs=crs).to_crs(_LONLAT)
        for i, outline in zip(members, turned, strict=True):
            outlines[i] = outline
    return geopandas.GeoSeries(outlines, crs=_LONLAT)
