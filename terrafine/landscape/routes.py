"""Lines across the terrain: least-cost paths, as water and roads take them, and drawing them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree

from terrafine.landscape.noise import Float32Array, Int64Array

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Pixels a side of the cells that paths are found on; finer bends are drawn in afterwards.
STEP = 8


@dataclass(frozen=True)
class Lattice:
    """Cells of STEP x STEP pixels with what it costs to cross each; ``graph`` joins neighbours."""

    shape: tuple[int, int]
    graph: csr_array

    @classmethod
    def of(cls, cost_HW: Float32Array) -> Lattice:
        """From the cost of crossing every cell, (h, w)."""
        height, width = cost_HW.shape
        number = np.arange(height * width).reshape(height, width)
        ends: list[tuple[Int64Array, Int64Array, Float64Array]] = []
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            here = np.s_[: height - down, max(-right, 0) : width - max(right, 0)]
            there = np.s_[down:, max(right, 0) : width + min(right, 0)]
            price = (cost_HW[here] + cost_HW[there]) / 2 * np.hypot(down, right)
            ends.append((number[here].ravel(), number[there].ravel(), price.ravel()))
        first, second, price = (np.concatenate(parts) for parts in zip(*ends, strict=True))
        size = height * width
        graph = coo_array(
            (
                np.concatenate([price, price]),
                (np.concatenate([first, second]), np.concatenate([second, first])),
            ),
            shape=(size, size),
        ).tocsr()
        return cls((height, width), graph)

    def cell(self, row: float, col: float) -> int:
        """Number of the cell that holds a pixel."""
        height, width = self.shape
        return int(min(row // STEP, height - 1)) * width + int(min(col // STEP, width - 1))

    def path(self, start: int, end: int) -> list[int]:
        """Cells of the cheapest way from ``start`` to ``end``."""
        _, before = dijkstra(self.graph, indices=start, return_predecessors=True)
        return _back(before, end)

    def network(self, places: list[int], *, loops: float) -> list[list[int]]:
        """Ways that join all ``places``: the tree of least cost, and ``loops`` of the other ways.

        Every way is the cheapest between two places whose surroundings (cells cheapest to reach
        from there) touch.
        """
        cost, before, source = dijkstra(
            self.graph, indices=places, return_predecessors=True, min_only=True
        )
        pairs = self.graph.tocoo()
        first, second = pairs.coords
        between = (source[first] != source[second]) & (first < second)
        first, second = first[between], second[between]
        total = cost[first] + cost[second] + pairs.data[between]
        rank = {cell: index for index, cell in enumerate(places)}
        left = np.array([rank[int(cell)] for cell in source[first]], np.int64)
        right = np.array([rank[int(cell)] for cell in source[second]], np.int64)
        pair = np.minimum(left, right) * len(places) + np.maximum(left, right)
        order = np.lexsort((total, pair))
        chosen = order[np.unique(pair[order], return_index=True)[1]]
        tree = minimum_spanning_tree(
            csr_array(
                (
                    total[chosen],
                    (pair[chosen] // len(places), pair[chosen] % len(places)),
                ),
                shape=(len(places), len(places)),
            )
        )
        kept = set((tree.tocoo().coords[0] * len(places) + tree.tocoo().coords[1]).tolist())
        others = [index for index in chosen if int(pair[index]) not in kept]
        others.sort(key=lambda index: float(total[index]))
        extra = {int(pair[index]) for index in others[: round(loops * len(others))]}
        return [
            _back(before, int(first[index])) + _back(before, int(second[index]))[::-1]
            for index in chosen
            if int(pair[index]) in kept | extra
        ]

    def line(self, cells: list[int], rng: np.random.Generator, *, wander: float) -> Float64Array:
        """(n, 2) smooth line of x, y in pixels through cells, moved by up to ``wander`` pixels."""
        rows, cols = np.divmod(np.array(cells), self.shape[1])
        points = np.stack([cols, rows], axis=1) * STEP + STEP / 2
        inner = points[1:-1] + rng.uniform(-wander, wander, points[1:-1].shape)
        points = np.concatenate([points[:1], inner, points[-1:]]).astype(np.float64)
        return rounded(points)


def rounded(points: Float64Array, times: int = 3) -> Float64Array:
    """The line with its corners cut (Chaikin 1974), its ends kept."""
    for _ in range(times):
        if len(points) < 3:
            break
        quarter = 0.75 * points[:-1] + 0.25 * points[1:]
        threequarters = 0.25 * points[:-1] + 0.75 * points[1:]
        inner = np.stack([quarter, threequarters], axis=1).reshape(-1, 2)
        points = np.concatenate([points[:1], inner[1:-1], points[-1:]])
    return points


def draw(mask_HW: npt.NDArray[np.uint8], points: Float64Array, width: int, value: int = 1) -> None:
    """Draw a line of ``width`` pixels into the mask, in place."""
    fixed = np.round((points - 0.5) * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(mask_HW, [fixed], False, value, thickness=width, shift=4)


def _back(before: npt.NDArray[np.integer], end: int) -> list[int]:
    """The cells from a source to ``end``."""
    cells = [end]
    while before[cells[-1]] >= 0:
        cells.append(int(before[cells[-1]]))
    return cells[::-1]
