"""Mode overviews of a class map: each step halves the resolution and keeps the commonest class.

A mean or a nearest pixel would make classes up or lose thin ones at random; the mode shows, at
every scale, the class that covers most of the ground below.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from terrafine.geometry import Window
from terrafine.legend import NO_CLASS, UNWRITTEN, UInt8Array

# Arrays whose longer side is at most this need no overview: a screen shows them whole.
SMALLEST_OVERVIEW = 256

ReadCodes = Callable[[Window], UInt8Array]


@dataclass(frozen=True)
class OverviewTile:
    """One finished tile of one overview.

    ``factor``: 2, 4, 8 ... base pixels a side of an overview pixel. ``window``: the tile's place
    in the overview array (its own pixel numbers, first pixel 0, 0). ``codes_HW``: uint8 codes.
    """

    factor: int
    window: Window
    codes_HW: UInt8Array


def mode_downsample(codes_HW: UInt8Array, factor: int = 2) -> UInt8Array:
    """The commonest class of every ``factor`` x ``factor`` block.

    ``codes_HW``: (H, W) uint8 class codes. Returns (ceil(H / factor), ceil(W / factor)) uint8;
    blocks cut by the lower or right edge count the pixels they have. Of equally common classes
    the smaller code is taken. 0 (no class) and 255 (never written) win only in a block without
    any class, 0 before 255: part of that block was looked at.
    """
    if factor < 1:
        raise ValueError(f"overview factor {factor} is below 1")
    height, width = codes_HW.shape
    rows, cols = -(-height // factor), -(-width // factor)
    padding = (0, rows * factor - height), (0, cols * factor - width)
    padded = np.pad(codes_HW, padding, constant_values=UNWRITTEN)
    blocks = padded.reshape(rows, factor, cols, factor)

    looked_at = (blocks == NO_CLASS).any(axis=(1, 3))
    best = np.where(looked_at, NO_CLASS, UNWRITTEN).astype(np.uint8)
    most = np.zeros((rows, cols), np.int64)
    for code in _classes_in(codes_HW):  # ascending, so that a tie stays with the smaller code
        count = (blocks == code).sum(axis=(1, 3))
        wins = count > most
        best[wins], most[wins] = code, count[wins]
    return best


def overview_factors(shape: tuple[int, int], *, smallest: int = SMALLEST_OVERVIEW) -> list[int]:
    """Factors 2, 4, 8 ... until the longer side is at most ``smallest``; empty if it is already."""
    factors: list[int] = []
    while max(overview_shape(shape, 2 ** len(factors))) > smallest:
        factors.append(2 ** (len(factors) + 1))
    return factors


def overview_shape(shape: tuple[int, int], factor: int) -> tuple[int, int]:
    """(height, width) of the overview of an array of ``shape``."""
    return -(-shape[0] // factor), -(-shape[1] // factor)


def overview_pyramid(
    read: ReadCodes,
    shape: tuple[int, int],
    *,
    tile: int = 2048,
    smallest: int = SMALLEST_OVERVIEW,
) -> Iterator[OverviewTile]:
    """All overviews of a class array, tile by tile, each from the level below it.

    ``read`` returns the (height, width) uint8 codes of a window of the base array, in the array's
    own pixel numbers (first pixel 0, 0). ``shape``: (H, W) of the base array. ``tile`` (even):
    pixels a side of the tiles handed out, at every level on multiples of ``tile``, so that a
    caller can write whole chunks. The base is read once, and at most four tiles per level are in
    memory: the pyramid is walked depth first.
    """
    if tile < 2 or tile % 2:
        raise ValueError(f"overview tile {tile} must be an even number of pixels")
    factors = overview_factors(shape, smallest=smallest)
    if not factors:
        return
    walk = _Pyramid(read, shape, tile)
    rows, cols = overview_shape(shape, factors[-1])
    for row in range(0, rows, tile):
        for col in range(0, cols, tile):
            yield from walk.down(factors[-1], row, col)


class _Pyramid:
    def __init__(self, read: ReadCodes, shape: tuple[int, int], tile: int) -> None:
        self._read, self._shape, self._tile = read, shape, tile

    def down(self, factor: int, row: int, col: int) -> Iterator[OverviewTile]:
        """The tile at (row, col) of level ``factor``, after every tile below it."""
        window = self._clip(factor, Window(row, col, self._tile, self._tile))
        codes = np.empty(window.shape, np.uint8)
        half = self._tile // 2
        for part_row in range(row, window.stop_row, half):
            for part_col in range(col, window.stop_col, half):
                part = self._clip(factor, Window(part_row, part_col, half, half))
                below = yield from self._below(factor // 2, part)
                codes[part.slices(window)] = mode_downsample(below)
        yield OverviewTile(factor, window, codes)

    def _below(self, factor: int, part: Window) -> Generator[OverviewTile, None, UInt8Array]:
        """Codes of the tile of level ``factor`` that ``part`` of the level above is made of."""
        if factor == 1:
            return self._read(
                self._clip(1, Window(part.row * 2, part.col * 2, self._tile, self._tile))
            )
        last = None
        for last in self.down(factor, part.row * 2, part.col * 2):
            yield last
        assert last is not None
        return last.codes_HW

    def _clip(self, factor: int, window: Window) -> Window:
        inside = Window(0, 0, *overview_shape(self._shape, factor)).intersection(window)
        assert inside is not None, (factor, window)
        return inside


def _classes_in(codes_HW: UInt8Array) -> list[int]:
    present = np.bincount(codes_HW.ravel(), minlength=256) > 0
    present[[NO_CLASS, UNWRITTEN]] = False
    return [int(code) for code in np.flatnonzero(present)]
