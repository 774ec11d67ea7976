"""What changed between two states of a map: pixels and area by class, and by region."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.legend import NO_CLASS, UNWRITTEN
from terrafine.mapping.reader import MapReader
from terrafine.progress import progress
from terrafine.raster import ELSEWHERE, Regions

# Pixels a side that are counted at once: OpenCV counts in float32, exact to 2**24.
_BLOCK = 2048

Counts = npt.NDArray[np.int64]


class Change(BaseModel):
    """From class (row) to class (column), over one region or all of them."""

    model_config = ConfigDict(frozen=True)

    region: str
    pixels: tuple[tuple[int, ...], ...]
    km2: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, region: str, pixels: Counts, km2: npt.NDArray[np.float64]) -> Change:
        """The change that two (K, K) arrays say."""
        return cls(region=region, pixels=pixels.tolist(), km2=km2.tolist())

    @property
    def mapped(self) -> int:
        """Pixels that have been looked at in both states."""
        return int(np.array(self.pixels)[:-1, :-1].sum())

    @property
    def changed(self) -> int:
        """Those of them that have another class now."""
        return int(_changed(self.pixels))

    @property
    def changed_km2(self) -> float:
        """Their area."""
        return _changed(self.km2)


class Difference(BaseModel):
    """The change matrix of two states. ``classes``: rows and columns; the last is "not mapped"."""

    model_config = ConfigDict(frozen=True)

    before: str
    after: str
    codes: tuple[int, ...]
    classes: tuple[str, ...]
    total: Change
    regions: tuple[Change, ...] = ()


@dataclass(frozen=True)
class _Compared:
    store: MapReader
    before: str
    after: str
    regions: Regions | None
    codes: tuple[int, ...]

    def count(self, zone: str, shard: Window) -> dict[int, Counts]:
        """Region number -> (K, K) pixels by class before and after."""
        old_HW, new_HW = (
            self.store.read(zone, shard, ref=ref) for ref in (self.before, self.after)
        )
        counts: dict[int, Counts] = {}
        for block in _blocks(shard):
            part = block.slices(shard)
            for number, mask in self._masks(zone, block):
                counted = cv2.calcHist(
                    [np.ascontiguousarray(old_HW[part]), np.ascontiguousarray(new_HW[part])],
                    [0, 1], mask, [256, 256], [0, 256, 0, 256],
                )  # fmt: skip
                known = counted[np.ix_(self.codes, self.codes)].astype(np.int64)
                if known.sum() != counted.sum(dtype=np.float64):
                    raise MapStoreError(
                        f"{self.store.path}: the shard at row {shard.row}, column {shard.col} of "
                        f"zone {zone} holds codes that legend {self.store.legend.name!r} does not "
                        "have; the map is damaged, map it again"
                    )
                counts[number] = counts.get(number, 0) + known
        return counts

    def _masks(
        self, zone: str, block: Window
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8] | None]]:
        if self.regions is None:
            yield 0, None
            return
        numbers_HW = self.regions.number(self.store.grid(zone), block)
        for number in np.unique(numbers_HW).tolist():
            yield number, (numbers_HW == number).astype(np.uint8)


def difference(
    store: MapReader,
    before: str,
    after: str,
    *,
    pixel_km2: Mapping[str, float],
    regions: Regions | None = None,
    workers: int = 1,
) -> Difference:
    """Count every pixel of two states (releases, runs, snapshots) of one store.

    ``pixel_km2``: zone -> area of a pixel. Only shards written in either state are read, whole,
    two at a time per worker (128 MB at 8192 pixels a side). A pixel belongs to the region that
    holds its centre, to the first where several do, and to "elsewhere" where none does.
    MapStoreError for an unknown state, or a code that the legend does not have.
    """
    legend = store.legend
    codes = (NO_CLASS, *legend.codes, UNWRITTEN)
    compared = _Compared(store, store.snapshot(before), store.snapshot(after), regions, codes)
    shards = [
        (zone, shard)
        for zone in store.zones()
        for shard in sorted(
            store.written(zone, compared.before) | store.written(zone, compared.after)
        )
    ]
    names = ["all"] if regions is None else [ELSEWHERE, *regions.names]
    pixels = np.zeros((len(names), len(codes), len(codes)), np.int64)
    km2 = np.zeros(pixels.shape)
    with (
        ThreadPoolExecutor(workers) as pool,
        progress("diff", total=len(shards), unit="shard") as task,
    ):
        counted = pool.map(lambda key: compared.count(*key), shards)
        for (zone, _), counts in zip(shards, counted, strict=True):
            for number, found in counts.items():
                pixels[number] += found
                km2[number] += found * pixel_km2[zone]
            task.advance()
    changes = [Change.of(*found) for found in zip(names, pixels, km2, strict=True)]
    return Difference(
        before=before,
        after=after,
        codes=codes,
        classes=("no class", *legend.names, "not mapped"),
        total=Change.of("all", pixels.sum(axis=0), km2.sum(axis=0)),
        regions=() if regions is None else tuple(c for c in changes if np.any(c.pixels)),
    )


def _changed(matrix: Sequence[Sequence[float]]) -> float:
    both = np.array(matrix)[:-1, :-1]
    return float(both.sum() - both.trace())


def _blocks(shard: Window) -> Iterator[Window]:
    return shard.tiles(min(_BLOCK, shard.height))
