"""How a zone is cut into work: shards, windows and CLAHE blocks on one global grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import shapely

from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window, zone_name
from terrafine.mapping.predictor import UInt16Array
from terrafine.raster import Region
from terrafine.spec import MappingSpec

# CRS -> where it is used, in degrees: UTM on WGS 84
_UTM: Mapping[str, Any] = {
    f"EPSG:{first + number}": shapely.box(6 * number - 186, south, 6 * number - 180, north)
    for first, south, north in ((32600, 0, 84), (32700, -80, 0))
    for number in range(1, 61)
}


class Imagery(Protocol):
    """The scenes of one zone, seen as one image (``terrafine.raster.Mosaic``)."""

    @property
    def zone(self) -> str:
        """Name of the zone, a group of the map store."""

    @property
    def grid(self) -> PixelGrid:
        """The pixel grid of all its scenes."""

    @property
    def window(self) -> Window:
        """Around all scenes."""

    @property
    def fill(self) -> int:
        """The number that marks a missing pixel."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Scene -> why it could not be read, of all that were asked so far in this process."""

    def touches(self, window: Window) -> bool:
        """Whether any scene covers a part of ``window``."""

    def read(self, window: Window) -> tuple[UInt16Array, UInt16Array]:
        """``image_CHW`` and ``source_HW`` (i: the i-th scene of the spec has the pixel in all its
        bands, 0: no scene has)."""


@dataclass(frozen=True)
class Plan:
    """One zone's work.

    ``extent``: around the imagery and the region, in whole shards, the shape of the zone's arrays
    in a store that is made for it; ``touched``: the shards that touch a scene and the region, row
    by row.
    """

    zone: str
    grid: PixelGrid
    extent: Window
    shard: int
    touched: tuple[Window, ...]

    @classmethod
    def of(cls, imagery: Imagery, spec: MappingSpec, region: Region | None = None) -> Plan:
        """The plan to map ``imagery``, all of it or what lies in ``region``.

        The extent holds all scenes, so that one store takes one province after the other, and all
        of the region, so that it takes next year's scenes, too. A shard that touches the region is
        mapped whole.
        """
        grid, around = imagery.grid, imagery.window
        touched = [shard for shard in around.tiles(spec.shard) if imagery.touches(shard)]
        if region is not None:
            inside = region.touches(grid.crs, [grid.bounds(shard) for shard in touched])
            touched = [shard for shard, kept in zip(touched, inside, strict=True) if kept]
            wanted = region.window(grid)
            around = around if wanted is None else around.union(wanted)
        return cls(imagery.zone, grid, around.snapped(spec.shard), spec.shard, tuple(touched))

    def shards(self) -> list[Window]:
        """The shards to be mapped, row by row."""
        return list(self.touched)


def plan_all(
    imagery: Mapping[str, Imagery], spec: MappingSpec, region: Region | None = None
) -> list[Plan]:
    """The plan of every zone, and empty ones of UTM zones that the region reaches and no scene yet.

    MapStoreError when the region touches no scene.
    """
    plans = [Plan.of(mosaic, spec, region) for mosaic in imagery.values()]
    if region is not None and not any(plan.touched for plan in plans):
        west, south, east, north = region.bounds
        raise MapStoreError(
            f"{region.where}: the region (longitude {west:.3f} to {east:.3f}, latitude "
            f"{south:.3f} to {north:.3f}) touches no scene; correct map.region, or give scenes "
            "of that place"
        )
    return plans if region is None else plans + _awaited(imagery, spec, region)


def _awaited(imagery: Mapping[str, Imagery], spec: MappingSpec, region: Region) -> list[Plan]:
    """Of zones where another year may have scenes: UTM, like all that there are, on their grid."""
    known = {mosaic.grid.crs: mosaic.grid for mosaic in imagery.values()}
    grids = {replace(grid, crs="") for grid in known.values()}
    if len(grids) > 1 or not known.keys() <= _UTM.keys():
        return []
    (grid,) = grids
    found = []
    for crs, ground in _UTM.items():
        if crs not in known and ground.intersects(region.outline):
            there = replace(grid, crs=crs)
            extent = region.window(there)
            assert extent is not None, "it touches the ground of this CRS"
            found.append(Plan(zone_name(crs), there, extent.snapped(spec.shard), spec.shard, ()))
    return found


def require_shard(window: Window, *, extent: Window, shard: int, where: str) -> None:
    """MapStoreError unless ``window`` is exactly one shard inside ``extent``.

    Two writers that each write a part of one shard lose pixels without an error (40 % in a trial
    with plain Zarr), so nothing smaller or larger than a shard may ever be written.
    """
    if window.shape != (shard, shard) or not window.is_aligned(shard):
        raise MapStoreError(
            f"{where}: rows {window.row}..{window.stop_row}, columns {window.col}.."
            f"{window.stop_col} are not one whole shard of {shard} pixels; nothing was written; "
            "write the shards that Plan.shards() lists"
        )
    if window.intersection(extent) != window:
        raise MapStoreError(
            f"{where}: the shard at row {window.row}, column {window.col} lies outside the map "
            f"({extent}); nothing was written; map a larger area into a new store"
        )
