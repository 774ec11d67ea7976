"""The pixels of a map store in a tile: class codes or confidence, from whatever is coarse enough.

Zoomed out, the store's overviews are shown. Where a run has none yet, or has mapped shards since
they were made, pixels are read and thinned; where those are too many for a tile, shards are shown
as done or still to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from affine import Affine

from terrafine.geometry import Window
from terrafine.legend import NO_CLASS, UNWRITTEN, UInt8Array
from terrafine.mapping import MapReader
from terrafine.mapping.layout import ZoneLayout, overview_grid
from terrafine.mapping.place import storage_errors
from terrafine.publish.figures import hide_where_unmapped
from terrafine.publish.overviews import mode_downsample
from terrafine.raster import warp_nearest
from terrafine.view.history import History
from terrafine.view.mercator import TILE, Place, Tile

LAYERS = ("map", "confidence")

# Pixels that one tile may cost: some tenths of a second, and so many bytes twice over.
BUDGET = 2**25

# What a tile's pixel is coarser than the map's where BUDGET is reached.
_COARSEST = BUDGET**0.5 / TILE

DONE, PLANNED = 1, 2


@dataclass(frozen=True)
class Pixels:
    """What a tile shows: ``values_HW``, uint8 class codes or percent, 255 where nothing is known;
    ``shards_HW``, uint8, there :data:`DONE` or :data:`PLANNED` in a shard, else 0."""

    values_HW: UInt8Array
    shards_HW: UInt8Array


class MapPixels:
    """A state of a map store, as tiles show it."""

    def __init__(self, reader: MapReader, history: History, snapshot: str) -> None:
        left = reader.planned(snapshot)
        root = zarr.open_group(reader.zarr_store(snapshot), mode="r")
        self._zones = []
        for zone, layout in reader.layout.zones.items():
            written = reader.written(zone, snapshot)
            fresh = history.since_overviews(snapshot, zone)
            self._zones.append(
                _Zone(
                    reader=reader,
                    group=_group(root, zone),
                    layout=layout,
                    written=frozenset(written),
                    behind=frozenset(written if fresh is None else fresh),
                    planned=frozenset(shard for name, shard in left if name == zone) - written,
                    factors=reader.overviews(zone, snapshot),
                )
            )

    def tile(self, layer: str, tile: Tile) -> Pixels:
        """What a tile shows. Where zones overlap, the first that has a class is seen."""
        values_HW = np.full((TILE, TILE), UNWRITTEN, np.uint8)
        shards_HW = np.zeros((TILE, TILE), np.uint8)
        for zone in self._zones:
            under = zone.place.under(tile)
            if under is not None:
                found = zone.tile(layer, tile, under)
                empty = (values_HW == UNWRITTEN) | (values_HW == NO_CLASS)
                np.copyto(values_HW, found.values_HW, where=empty & (found.values_HW != UNWRITTEN))
                np.copyto(shards_HW, found.shards_HW, where=shards_HW == 0)
        shards_HW[values_HW != UNWRITTEN] = 0
        return Pixels(values_HW, shards_HW)

    def fine_from(self, layer: str) -> int:
        """The zoom level from which pixels are seen everywhere, not shards."""
        return max((zone.fine_from(layer) for zone in self._zones), default=0)


@dataclass(frozen=True)
class _Zone:
    """A zone of a snapshot. ``behind``: written shards that its overviews do not show."""

    reader: MapReader
    group: zarr.Group
    layout: ZoneLayout
    written: frozenset[Window]
    behind: frozenset[Window]
    planned: frozenset[Window]
    factors: tuple[int, ...]

    @cached_property
    def place(self) -> Place:
        return Place(self.layout.grid, self.layout.extent)

    def tile(self, layer: str, tile: Tile, under: Window) -> Pixels:
        factor = min(2 ** max(0, round(np.log2(self.place.coarseness(tile.z)))), self.layout.shard)
        stored = max((f for f in self.factors if f <= factor), default=1)
        hidden = self.written if layer == "confidence" else self.behind
        fresh = layer == "map" and not any(shard.intersection(under) for shard in hidden)
        if stored > 1 and fresh:
            values_HW, hidden = self._overview(stored, under, tile), frozenset()
        elif under.height * under.width <= BUDGET:
            values_HW, hidden = self._thinned(layer, factor, under, tile), frozenset()
        elif stored > 1 and layer == "map":
            values_HW = self._overview(stored, under, tile)
            values_HW[self._marked(hidden, tile)] = UNWRITTEN
        else:
            values_HW = np.full((TILE, TILE), UNWRITTEN, np.uint8)
        shards_HW = np.zeros((TILE, TILE), np.uint8)
        shards_HW[self._marked(self.planned, tile)] = PLANNED
        shards_HW[self._marked(hidden, tile)] = DONE
        return Pixels(values_HW, shards_HW)

    def fine_from(self, layer: str) -> int:
        height, width = self.layout.extent.shape
        if height * width <= BUDGET or not self.written or (layer == "map" and not self.behind):
            return 0
        return self.place.zoom_for(_COARSEST)

    def _overview(self, factor: int, under: Window, tile: Tile) -> UInt8Array:
        _, extent = overview_grid(self.layout, factor)
        part = _coarser(under, factor).intersection(extent)
        assert part is not None, "a tile that sees the zone sees its overviews"
        return self._shown(self._read(f"landcover_{factor}", part, extent), factor, part, tile)

    def _thinned(self, layer: str, factor: int, under: Window, tile: Tile) -> UInt8Array:
        part = under.snapped(factor).intersection(self.layout.extent)
        assert part is not None, "a tile that sees the zone sees its pixels"
        values_HW = self._read("landcover", part, self.layout.extent)
        if layer == "confidence":
            middle = slice(factor // 2, None, factor)
            percent_HW = self._read("confidence", part, self.layout.extent)[middle, middle]
            values_HW = hide_where_unmapped(percent_HW, values_HW[middle, middle])
        else:
            for _ in range(factor.bit_length() - 1):
                values_HW = mode_downsample(values_HW)
        return self._shown(values_HW, factor, _coarser(part, factor), tile)

    def _marked(self, shards: frozenset[Window], tile: Tile) -> npt.NDArray[np.bool_]:
        """(H, W) bool: pixels of a tile that lie in one of the shards."""
        if not shards:
            return np.zeros((TILE, TILE), bool)
        size = self.layout.shard
        _, extent = overview_grid(self.layout, size)
        marks_HW = np.zeros(extent.shape, np.uint8)
        for shard in shards:
            marks_HW[shard.row // size - extent.row, shard.col // size - extent.col] = 1
        return np.asarray(self._shown(marks_HW, size, extent, tile, fill=0) == 1)

    def _shown(
        self,
        pixels_HW: UInt8Array,
        factor: int,
        window: Window,
        tile: Tile,
        fill: int = UNWRITTEN,
    ) -> UInt8Array:
        grid, _ = overview_grid(self.layout, factor)
        transform: Affine = grid.transform(window)
        shown_HW: UInt8Array = warp_nearest(
            pixels_HW, grid.crs, transform, tile.grid, tile.window, fill=fill
        )
        return shown_HW

    def _read(self, name: str, part: Window, extent: Window) -> UInt8Array:
        with storage_errors(self.reader.path, "read"):
            array: Any = self.group[name]
            return np.asarray(array[part.slices(extent)])


def _coarser(window: Window, factor: int) -> Window:
    """The window in pixels ``factor`` times coarser, grown to whole ones."""
    around = window.snapped(factor)
    return Window(*(value // factor for value in (around.row, around.col, *around.shape)))


def _group(root: zarr.Group, zone: str) -> zarr.Group:
    group = root[zone]
    assert isinstance(group, zarr.Group), "the layout says so"
    return group
