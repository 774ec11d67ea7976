"""Where map and reference meet: samples of a map at points, or at every pixel of a raster.

No files here: the map is a function of a window, the reference anything that can be read on the
map's grid or that lists points. Only pixels inside the given windows count, which is how an
assessment is kept to chips that nobody trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from terrafine.accuracy.confusion import Int64Array
from terrafine.accuracy.samples import Samples, is_class
from terrafine.errors import AccuracyError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import UInt8Array
from terrafine.progress import progress

# (H, W) legend codes of a window of the map.
ReadMap = Callable[[Window], UInt8Array]

# Pixels a side that are read at once, whatever the size of a window.
_RASTER_TILE = 2048
_POINT_TILE = 512


@runtime_checkable
class RasterReference(Protocol):
    """A reference that knows the class of every pixel."""

    def read(self, grid: PixelGrid, window: Window) -> UInt8Array:
        """(H, W) uint8 legend codes on ``grid``; 0 where there is no reference."""


@runtime_checkable
class PointReference(Protocol):
    """Reference points: coordinates in ``crs`` and a legend code each (0: not a sample)."""

    @property
    def x(self) -> npt.NDArray[np.float64]:
        """(n,) eastings or longitudes."""

    @property
    def y(self) -> npt.NDArray[np.float64]:
        """(n,) northings or latitudes."""

    @property
    def codes(self) -> UInt8Array:
        """(n,) legend codes."""

    @property
    def crs(self) -> str:
        """CRS of x and y."""

    def to_crs(self, crs: str) -> Self:
        """The same points in another CRS."""


def sample(
    read_map: ReadMap,
    grid: PixelGrid,
    windows: Sequence[Window],
    reference: RasterReference | PointReference,
    *,
    unit: int,
    read_other: ReadMap | None = None,
) -> Samples:
    """Samples of a map inside ``windows`` of ``grid``, and of a second map at the same places.

    Points: each is one sample and its own unit, numbered as they are listed; the map's class is
    that of the pixel that holds the point. Raster: every pixel with a reference class is a
    sample, and the units are blocks of ``unit`` x ``unit`` pixels of the global grid, no smaller
    than what was held out at once (:meth:`terrafine.spec.AssessSpec.unit_of`).
    AccuracyError when windows overlap, since a pixel would count twice. The result is empty when
    no reference lies in the windows.
    """
    _refuse_overlap(windows)
    readers = [read_map] if read_other is None else [read_map, read_other]
    if isinstance(reference, PointReference):
        return _sample_points(readers, grid, windows, reference)
    return _sample_raster(readers, grid, windows, reference, unit)


def _sample_raster(
    readers: Sequence[ReadMap],
    grid: PixelGrid,
    windows: Sequence[Window],
    reference: RasterReference,
    unit: int,
) -> Samples:
    tiles = [tile for window in windows for tile in _pieces(window, _RASTER_TILE)]
    empty = np.zeros(0, np.uint8)
    parts = [_samples(readers, empty, [empty] * len(readers), np.zeros(0, np.int64), None)]
    with progress("assess", total=len(tiles), unit="tile") as task:
        for tile in tiles:
            codes = reference.read(grid, tile)
            sampled = is_class(codes)
            if sampled.any():
                maps = [_read(reader, tile)[sampled] for reader in readers]
                blocks = _blocks(tile, unit)[sampled]
                parts.append(_counted(readers, codes[sampled], maps, blocks))
            task.advance()
    return _join(parts)


def _sample_points(
    readers: Sequence[ReadMap],
    grid: PixelGrid,
    windows: Sequence[Window],
    points: PointReference,
) -> Samples:
    here = points.to_crs(grid.crs)
    # A point outside the zone's projection has no finite coordinates and lies in no window.
    usable = np.flatnonzero(is_class(here.codes) & np.isfinite(here.x) & np.isfinite(here.y))
    pixels = [grid.pixel_of(float(here.x[i]), float(here.y[i])) for i in usable]
    rows, cols = np.array(pixels, np.int64).reshape(-1, 2).T
    values = np.zeros((len(readers), usable.size), np.uint8)
    taken = np.zeros(usable.size, bool)
    with progress("assess", total=len(windows), unit="window") as task:
        for window in windows:
            for group in _groups(window, rows, cols):
                around = _around(rows[group], cols[group])
                at = rows[group] - around.row, cols[group] - around.col
                for value, reader in zip(values, readers, strict=True):
                    value[group] = _read(reader, around)[at]
                taken[group] = True
            task.advance()
    maps = [value[taken] for value in values]
    return _samples(readers, here.codes[usable[taken]], maps, usable[taken], None)


def _samples(
    readers: Sequence[ReadMap],
    reference: UInt8Array,
    maps: Sequence[UInt8Array],
    unit: Int64Array | None,
    count: Int64Array | None,
) -> Samples:
    return Samples(maps[0], reference, unit, maps[1] if len(readers) > 1 else None, count)


def _counted(
    readers: Sequence[ReadMap], reference: UInt8Array, maps: Sequence[UInt8Array], unit: Int64Array
) -> Samples:
    """Pixels of one tile, those that are alike in every respect counted as one entry."""
    found, block = np.unique(unit, return_inverse=True)
    key = block.astype(np.int64)
    for codes in (reference, *maps):
        key = key * 256 + codes
    kinds, count = np.unique(key, return_counts=True)
    columns: list[UInt8Array] = []
    for _ in range(1 + len(maps)):
        kinds, codes = np.divmod(kinds, 256)
        columns.insert(0, codes.astype(np.uint8))
    return _samples(readers, columns[0], columns[1:], found[kinds], count.astype(np.int64))


def _join(parts: Sequence[Samples]) -> Samples:
    """Tiles of one grid: a unit that two tiles share stays one unit, unlike in concatenate."""

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Samples(
        joined("mapped"),
        joined("reference"),
        joined("unit"),
        joined("other"),
        np.concatenate([part.counts for part in parts]),
    )


def _read(reader: ReadMap, window: Window) -> UInt8Array:
    codes = reader(window)
    if codes.shape != window.shape:
        raise AccuracyError(
            f"the map gave {codes.shape} pixels for {window}, not {window.shape}; "
            "a reader fills what lies outside the map with 255"
        )
    return codes


def _blocks(window: Window, unit: int) -> Int64Array:
    """(H, W) number of the global block of ``unit`` pixels that holds each pixel."""
    rows = np.arange(window.row, window.stop_row, dtype=np.int64) // unit
    cols = np.arange(window.col, window.stop_col, dtype=np.int64) // unit
    # Pixel numbers stay far below 2^31, so that no two blocks share a number.
    numbers: Int64Array = rows[:, None] * 2**32 + cols
    return numbers


def _pieces(window: Window, size: int) -> Iterator[Window]:
    """The parts of a window that lie in different tiles of the global grid."""
    for tile in window.tiles(size):
        piece = tile.intersection(window)
        if piece is not None:
            yield piece


def _groups(window: Window, rows: Int64Array, cols: Int64Array) -> list[Int64Array]:
    """Positions of the points inside ``window``, those of one tile together."""
    inside = np.flatnonzero(
        (rows >= window.row)
        & (rows < window.stop_row)
        & (cols >= window.col)
        & (cols < window.stop_col)
    )
    if not inside.size:
        return []
    tile = rows[inside] // _POINT_TILE * 2**32 + cols[inside] // _POINT_TILE
    order = np.argsort(tile, kind="stable")
    edges = np.flatnonzero(np.diff(tile[order])) + 1
    return np.split(inside[order], edges)


def _around(rows: Int64Array, cols: Int64Array) -> Window:
    """The smallest window that holds these pixels."""
    row, col = int(rows.min()), int(cols.min())
    return Window(row, col, int(rows.max()) - row + 1, int(cols.max()) - col + 1)


def _refuse_overlap(windows: Sequence[Window]) -> None:
    open_windows: list[Window] = []
    for window in sorted(windows):
        open_windows = [other for other in open_windows if other.stop_row > window.row]
        for other in open_windows:
            if window.intersection(other) is not None:
                raise AccuracyError(
                    f"the assessed windows {other} and {window} overlap, so that pixels would "
                    "count twice; give windows of one tiling"
                )
        open_windows.append(window)
