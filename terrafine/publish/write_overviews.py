"""Overviews into a map store, shard by shard: whole-country maps in bounded memory.

A shard is a power of two on the global grid, so its overviews up to its own size come from its
pixels alone. What threads must not share is a chunk of an overview, which shows many shards at
coarse factors: they work on squares of shards that fill whole chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from terrafine.geometry import Window
from terrafine.mapping import MapStore
from terrafine.mapping.layout import CHUNK
from terrafine.progress import progress
from terrafine.publish.overviews import mode_downsample, overview_factors, overview_shape

# Coarser ones come from this one, which is small enough (50 MB for a UTM zone at 3 m) to be held.
_BY_SHARD = 64


@dataclass(frozen=True)
class _Square:
    """The shards of one square of a zone, and the overviews that they fill whole chunks of."""

    store: MapStore
    snapshot: str
    zone: str
    levels: dict[int, zarr.Array[Any]]

    def write(self, square: Window, shards: Sequence[Window]) -> int:
        """Write the overviews of some shards of a square; returns how many."""
        extent = self.store.window(self.zone)
        inside = square.intersection(extent)
        assert inside is not None
        # a shard that does not fill a chunk by itself is written with its neighbours
        held = {
            factor: np.asarray(level[_coarser(inside, extent, factor)])
            for factor, level in self.levels.items()
            if shards[0].height // factor < CHUNK
        }
        for shard in shards:
            codes_HW = self.store.read(self.zone, shard, ref=self.snapshot)
            for factor, level in self.levels.items():
                codes_HW = mode_downsample(codes_HW)
                if factor in held:
                    held[factor][_coarser(shard, inside, factor)] = codes_HW
                else:
                    level[_coarser(shard, extent, factor)] = codes_HW
        for factor, codes_HW in held.items():
            self.levels[factor][_coarser(inside, extent, factor)] = codes_HW
        return len(shards)


def write_overviews(
    store: MapStore, run: str, *, workers: int = 1, by_shard: int = _BY_SHARD
) -> None:
    """Write the mode overviews (:func:`overview_factors`) of every zone of a run.

    Only shards that changed since the run's overviews were made (by the release that an update
    started from, for one) are read; a run whose overviews are up to date is left as it is. A
    worker holds one shard and a third of it. The pixels are those of halving the whole
    zone again and again.
    ``by_shard``: the coarsest overview that is made shard by shard.
    """
    for zone in store.zones():
        size = store.layout.zones[zone].shard
        factors = [f for f in overview_factors(store.window(zone).shape) if size % f == 0]
        shards = sorted(store.without_overviews(run, zone, factors)) if factors else []
        if shards:
            _write_zone(store, run, zone, factors, shards, workers, by_shard)


def _write_zone(
    store: MapStore,
    run: str,
    zone: str,
    factors: Sequence[int],
    shards: Sequence[Window],
    workers: int,
    by_shard: int,
) -> None:
    snapshot, extent = store.snapshot(run), store.window(zone)
    near = [factor for factor in factors if factor <= by_shard]
    squares: dict[Window, list[Window]] = {}
    for shard in shards:
        squares.setdefault(_square(shard, extent, CHUNK * near[-1]), []).append(shard)
    with (
        store.overviews_of(run, zone, factors) as levels,
        ThreadPoolExecutor(workers) as pool,
        progress("overviews", total=len(shards), unit="shard") as task,
    ):
        work = _Square(store, snapshot, zone, {factor: levels[factor] for factor in near})
        for done in pool.map(lambda item: work.write(*item), squares.items()):
            task.advance(done)
        codes_HW = np.asarray(levels[near[-1]][:]) if len(near) < len(factors) else None
        for factor in factors[len(near) :]:
            assert codes_HW is not None
            codes_HW = mode_downsample(codes_HW)
            levels[factor][:] = codes_HW


def _square(shard: Window, extent: Window, least: int) -> Window:
    """The square of at least ``least`` pixels a side, counted from the extent's corner."""
    size = max(shard.height, least)
    row, col = ((at - start) // size * size + start for at, start in _corner(shard, extent))
    return Window(row, col, size, size)


def _corner(window: Window, extent: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    return (window.row, extent.row), (window.col, extent.col)


def _coarser(window: Window, within: Window, factor: int) -> tuple[slice, slice]:
    """Where an overview of ``within`` shows ``window``."""
    row, col = (at - start for at, start in _corner(window, within))
    height, width = overview_shape(window.shape, factor)
    return (
        slice(row // factor, row // factor + height),
        slice(col // factor, col // factor + width),
    )
