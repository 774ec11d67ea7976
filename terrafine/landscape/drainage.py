"""Water on the terrain: a river passing through, streams that gather, lakes in low places."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from terrafine.landscape.noise import Float32Array, Int64Array, fractal, smooth
from terrafine.landscape.routes import STEP, Lattice, draw
from terrafine.landscape.terrain import PIXEL_METRES, Terrain

BoolArray = npt.NDArray[np.bool_]

_CELL_KM2 = (STEP * PIXEL_METRES / 1000) ** 2
# A stream of one pixel drains this much; its width grows with the square root.
_SOURCE_KM2 = 0.085
_WIDEST_STREAM = 5
_FEWEST_LAKES = 0.008


@dataclass(frozen=True)
class Water:
    """(H, W) bool: ``river``, ``lake``; ``stream`` lines of 1..5 pixels; ``banks`` of the river."""

    river: BoolArray
    lake: BoolArray
    stream: BoolArray
    banks: BoolArray

    @property
    def all(self) -> BoolArray:
        """Where there is water."""
        return self.river | self.lake | self.stream


def make_water(terrain: Terrain, rng: np.random.Generator, *, share: float) -> Water:
    """A river, streams, and as many lakes as bring the water to ``share`` of the area."""
    height, width = terrain.elevation.shape
    coarse = (-(-width // STEP), -(-height // STEP))
    elevation = _averaged(terrain.elevation, coarse)
    low = _averaged(terrain.height, coarse)
    uneven = 0.25 * fractal(low.shape, rng, slope=1.0).clip(-1, 2)
    lattice = Lattice.of((0.15 + (low + uneven) ** 2).astype(np.float32))
    river = np.zeros((height, width), np.uint8)
    banks = np.zeros((height, width), np.uint8)
    course = _river(lattice, low, rng)
    line = lattice.line(course, rng, wander=6)
    breadth = round(min(max(width / 64, 8), 18) * float(rng.uniform(0.8, 1.2)))
    draw(river, line, breadth)
    # Bars of gravel lie beside the river here and there, where noise puts them.
    draw(banks, line, breadth + 10)
    gravel = smooth((height, width), rng, sigma=12) > 0.9
    rough = elevation + 0.4 * fractal(elevation.shape, rng, slope=0.8)
    stream = np.zeros((height, width), np.uint8)
    for cells, breadth in _streams(rough.astype(np.float32), set(course)):
        draw(stream, lattice.line(cells, rng, wander=4), breadth)
    score = smooth((height, width), rng, sigma=22) + 0.25 * smooth((height, width), rng, sigma=5)
    score = score - 3.5 * terrain.height - 1.5 * terrain.steepness
    lakes = max(share - float((river | stream).mean()), _FEWEST_LAKES)
    lake = score > np.quantile(score[::4, ::4], 1 - lakes)
    return Water(
        river.astype(bool),
        lake,
        stream.astype(bool),
        (banks.astype(bool) & gravel) & ~river.astype(bool),
    )


def _averaged(field: Float32Array, size: tuple[int, int]) -> Float32Array:
    return np.asarray(cv2.resize(field, size, interpolation=cv2.INTER_AREA), np.float32)


def _river(lattice: Lattice, low: Float32Array, rng: np.random.Generator) -> list[int]:
    """Cells from the low part of one side to the low part of another."""
    rows, cols = lattice.shape
    middle = slice(1, -1)
    sides = (
        (np.arange(cols)[middle], low[0, middle]),
        ((rows - 1) * cols + np.arange(cols)[middle], low[-1, middle]),
        (np.arange(rows)[middle] * cols, low[middle, 0]),
        (np.arange(rows)[middle] * cols + cols - 1, low[middle, -1]),
    )
    gates = sorted((float(heights.min()), int(cells[heights.argmin()])) for cells, heights in sides)
    start = gates[0][1]
    end = gates[int(rng.integers(1, 3))][1]
    return lattice.path(start, end)


def _streams(elevation: Float32Array, river: set[int]) -> list[tuple[list[int], int]]:
    """Chains of cells from spring to mouth, in pieces of one width in pixels each."""
    order, below = _flood(elevation, river)
    drained = np.full(elevation.size, _CELL_KM2)
    for cell in reversed(order):
        if below[cell] >= 0:
            drained[below[cell]] += drained[cell]
    flowing = drained >= _SOURCE_KM2
    fed = np.zeros(elevation.size, bool)
    inner = flowing & (below >= 0)
    fed[below[inner]] = True
    pieces: list[tuple[list[int], int]] = []
    seen = np.zeros(elevation.size, bool)
    for spring in np.flatnonzero(flowing & ~fed).tolist():
        chain, breadth = [spring], 1
        while below[chain[-1]] >= 0 and not seen[chain[-1]]:
            seen[chain[-1]] = True
            chain.append(int(below[chain[-1]]))
            wider = min(round(float(np.sqrt(drained[chain[-1]] / _SOURCE_KM2))), _WIDEST_STREAM)
            if wider > breadth and len(chain) > 6:
                pieces.append((chain, breadth))
                chain = [chain[-1]]
                breadth = wider
        if len(chain) > 1:
            pieces.append((chain, breadth))
    return pieces


def _flood(elevation: Float32Array, river: set[int]) -> tuple[list[int], Int64Array]:
    """Order in which rising water reaches the cells from the border and the river, and from where.

    Priority flood (Barnes et al. 2014): the cell from which water came is where it drains to.
    """
    rows, cols = elevation.shape
    level = elevation.ravel().astype(float).tolist()
    below = np.full(rows * cols, -1, np.int64)
    reached = [False] * (rows * cols)
    number = np.arange(rows * cols).reshape(rows, cols)
    border = {*number[[0, -1]].ravel().tolist(), *number[:, [0, -1]].ravel().tolist()}
    queue = [(level[cell], cell) for cell in sorted(border | river)]
    heapq.heapify(queue)
    for _, cell in queue:
        reached[cell] = True
    order: list[int] = []
    while queue:
        surface, cell = heapq.heappop(queue)
        order.append(cell)
        row, col = divmod(cell, cols)
        for other_row in range(max(row - 1, 0), min(row + 2, rows)):
            for other_col in range(max(col - 1, 0), min(col + 2, cols)):
                other = other_row * cols + other_col
                if not reached[other]:
                    reached[other] = True
                    below[other] = cell
                    heapq.heappush(queue, (max(surface, level[other]), other))
    return order, below
