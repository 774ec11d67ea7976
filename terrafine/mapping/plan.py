"""How a zone is cut into work: shards, windows and CLAHE blocks on one global grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.mapping.predictor import UInt16Array
from terrafine.raster import Region
from terrafine.spec import MappingSpec


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

    ``extent``: the imagery's window grown to whole shards, the shape of the zone's arrays;
    ``touched``: the shards that touch a scene and the region, row by row.
    """

    zone: str
    grid: PixelGrid
    extent: Window
    shard: int
    touched: tuple[Window, ...]

    @classmethod
    def of(cls, imagery: Imagery, spec: MappingSpec, region: Region | None = None) -> Plan:
        """The plan to map ``imagery``, all of it or what lies in ``region``.

        The extent does not depend on the region, so that one store takes one province after the
        other. A shard that touches the region is mapped whole.
        """
        grid, extent = imagery.grid, imagery.window.snapped(spec.shard)
        touched = [shard for shard in extent.tiles(spec.shard) if imagery.touches(shard)]
        if region is not None:
            inside = region.touches(grid.crs, [grid.bounds(shard) for shard in touched])
            touched = [shard for shard, kept in zip(touched, inside, strict=True) if kept]
        return cls(imagery.zone, grid, extent, spec.shard, tuple(touched))

    def shards(self) -> list[Window]:
        """The shards to be mapped, row by row."""
        return list(self.touched)


def plan_all(
    imagery: Mapping[str, Imagery], spec: MappingSpec, region: Region | None = None
) -> list[Plan]:
    """The plan of every zone; MapStoreError when the region lies outside all of them."""
    plans = [Plan.of(mosaic, spec, region) for mosaic in imagery.values()]
    if region is not None and not any(plan.touched for plan in plans):
        west, south, east, north = region.bounds
        raise MapStoreError(
            f"{region.where}: the region (longitude {west:.3f} to {east:.3f}, latitude "
            f"{south:.3f} to {north:.3f}) touches no scene; correct map.region, or give scenes "
            "of that place"
        )
    return plans


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
