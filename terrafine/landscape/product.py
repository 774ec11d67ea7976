"""A 10-m label product of known truth, wrong as often and in the same way as the published one.

Two things make it wrong, as they do a real product. Its cells of 10 m hold one class each and do
not line up with the 3-m pixels: narrow features vanish and edges move. And its classifier
confuses classes: whole parcels and stands, patches of tens to hundreds of metres, mixed cells,
and ground that looks like another class are taken for it. How much of each pair of classes is
confused is solved for, so that both together give the published matrix
(:data:`terrafine.accuracy.published.DONG_PRODUCT_10M`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from terrafine.accuracy.published import DONG_PRODUCT_10M
from terrafine.errors import DatasetError
from terrafine.geometry import PixelGrid, Window
from terrafine.landscape.noise import Float32Array, Int64Array, UInt32Array, normal, smooth
from terrafine.legend import SEVEN, UInt8Array

Float64Array = npt.NDArray[np.float64]

CELL_METRES: Final = 10.0
# Where the product's lines run: on purpose on none of the imagery's.
_PHASE_X, _PHASE_Y = 4.4, 7.7
PUBLISHED_OA: Final = float(np.trace(DONG_PRODUCT_10M) / DONG_PRODUCT_10M.sum())
# What decides which cells err, as standard deviations: patches by place, whole objects, ground
# that looks like the other class, and its share of the cell.
PATCHES, OBJECTS, LOOKS, MIXTURE = 0.75, 0.60, 0.35, 0.45
# Correlation of the patches in cells: about 60 m and 150 m.
_RANGES: Final = (3.0, 7.0)
_CLASSES: Final = len(SEVEN.classes)
_ROUNDS, _TOLERANCE, _OFF_AT_MOST = 14, 5e-4, 5e-3


@dataclass(frozen=True)
class Product:
    """``codes``: (h, w) uint8 of the seven classes, 0 beyond the scene, on ``window`` of ``grid``.

    ``seen``: (H, W) the same on the truth's pixels, by nearest neighbour. ``matrix``: (7, 7)
    pixels of 3 m, rows product, columns truth. ``majority_oa``: what mixed cells alone leave.
    """

    codes: UInt8Array
    grid: PixelGrid
    window: Window
    seen: UInt8Array
    matrix: Int64Array
    majority_oa: float

    @property
    def overall_accuracy(self) -> float:
        """Against the truth, by pixels of 3 m."""
        return _accuracy(self.matrix)


@dataclass(frozen=True)
class _Cells:
    """The scene in the product's cells; n cells in row order, K classes.

    ``share_nK``: area share of every class. ``class_n``: the majority. ``of_pixel``: (H, W) cell
    number of every pixel's middle. ``pixel_n``: a pixel of the cell, of its majority class if
    one has its middle there.
    """

    shape: tuple[int, int]
    share_nK: Float32Array
    class_n: Int64Array
    of_pixel: Int64Array
    pixel_n: Int64Array


def make_product(
    truth_HW: UInt8Array,
    thing_HW: UInt32Array,
    ground_CHW: Float32Array,
    grid: PixelGrid,
    window: Window,
    rng: np.random.Generator,
) -> Product:
    """A product of the scene on the whole 10-m lines of its CRS.

    ``truth_HW``: uint8 codes on ``window`` of ``grid``; ``thing_HW``: object numbers;
    ``ground_CHW``: what the product's own classifier saw. DatasetError where no product of the
    published overall accuracy can be made of it.
    """
    coarse = PixelGrid(grid.crs, CELL_METRES, CELL_METRES, _PHASE_X, _PHASE_Y)
    cells_window = _around(grid, window, coarse)
    index_HW = SEVEN.index_table[truth_HW].astype(np.int64)
    across = [_overlap(grid, window, cells_window, axis) for axis in (0, 1)]
    cells = _cells(index_HW, across, grid, window, cells_window)
    score = _scores(cells, thing_HW, ground_CHW, across, rng)
    chosen_n = _calibrated(cells, index_HW, score)
    codes = SEVEN.code_table[chosen_n].reshape(cells.shape)
    return Product(
        codes,
        coarse,
        cells_window,
        SEVEN.code_table[chosen_n[cells.of_pixel]],
        _matrix(chosen_n, cells, index_HW),
        _accuracy(_matrix(cells.class_n, cells, index_HW)),
    )


def _around(grid: PixelGrid, window: Window, coarse: PixelGrid) -> Window:
    """The cells of ``coarse`` that touch a window of ``grid``."""
    left, bottom, right, top = grid.bounds(window)
    inset = 1e-6  # an edge on the line between two cells belongs to the cell inside
    row, col = coarse.pixel_of(left + inset, top - inset)
    last_row, last_col = coarse.pixel_of(right - inset, bottom + inset)
    return Window(row, col, last_row - row + 1, last_col - col + 1)


def _edges(grid: PixelGrid, window: Window, axis: int) -> Float64Array:
    """Where pixels begin, in metres south (axis 0) or east (axis 1) of the cells' origin."""
    if axis == 0:
        return _PHASE_Y - grid.y0 + grid.dy * (window.row + np.arange(window.height, dtype=float))
    return grid.x0 - _PHASE_X + grid.dx * (window.col + np.arange(window.width, dtype=float))


def _overlap(grid: PixelGrid, window: Window, cells: Window, axis: int) -> csr_array:
    """(cells, pixels) metres that cells and pixels have in common along an axis."""
    first, side = (cells.row, grid.dy) if axis == 0 else (cells.col, grid.dx)
    begin = _edges(grid, window, axis)
    cell = np.floor(begin / CELL_METRES).astype(np.int64)
    inside = np.minimum((cell + 1) * CELL_METRES, begin + side) - begin
    rows = np.concatenate([cell, cell + 1]) - first
    metres = np.concatenate([inside, side - inside])
    pixel = np.tile(np.arange(len(begin)), 2)
    kept = metres > 1e-6
    shape = (cells.shape[axis], len(begin))
    return csr_array((metres[kept], (rows[kept], pixel[kept])), shape=shape)


def _cells(
    index_HW: Int64Array,
    across: list[csr_array],
    grid: PixelGrid,
    window: Window,
    cells: Window,
) -> _Cells:
    area = [_summed(index_HW == k, across) for k in range(_CLASSES)]
    share_nK = np.stack(area, axis=-1).reshape(-1, _CLASSES).astype(np.float32)
    share_nK /= share_nK.sum(axis=1, keepdims=True)
    row, col = (
        np.floor((_edges(grid, window, axis) + side / 2) / CELL_METRES).astype(np.int64) - first
        for axis, side, first in ((0, grid.dy, cells.row), (1, grid.dx, cells.col))
    )
    of_pixel = row[:, None] * cells.width + col[None]
    class_n = share_nK.argmax(axis=1).astype(np.int64)
    return _Cells(
        cells.shape, share_nK, class_n, of_pixel, _typical_pixel(index_HW, of_pixel, class_n)
    )


def _typical_pixel(index_HW: Int64Array, of_pixel: Int64Array, class_n: Int64Array) -> Int64Array:
    """(n,) position of one pixel of every cell, of the cell's class where there is one."""
    cell = of_pixel.ravel()
    typical = index_HW.ravel() == class_n[cell]
    order = np.lexsort((~typical, cell))
    found, first = np.unique(cell[order], return_index=True)
    pixel_n = np.zeros(len(class_n), np.int64)
    pixel_n[found] = order[first]
    return pixel_n


def _summed(values_HW: npt.NDArray[np.generic], across: list[csr_array]) -> Float64Array:
    """(h, w) sum over each cell, weighted by area."""
    down, right = across
    summed: Float64Array = right @ (down @ values_HW.astype(np.float64)).T
    return summed.T


def _scores(
    cells: _Cells,
    thing_HW: UInt32Array,
    ground_CHW: Float32Array,
    across: list[csr_array],
    rng: np.random.Generator,
) -> Float32Array:
    """(n, K): how readily each cell is taken for each class."""
    seed = int(rng.integers(2**31))
    thing_n = thing_HW.ravel()[cells.pixel_n]
    looks = _looks(cells, ground_CHW, across)
    score = np.empty(cells.share_nK.shape, np.float32)
    for k in range(_CLASSES):
        field = sum(smooth(cells.shape, rng, sigma=sigma) for sigma in _RANGES) / np.sqrt(2)
        score[:, k] = PATCHES * field.ravel() + OBJECTS * normal(seed, k, thing_n)
        score[:, k] += LOOKS * looks[:, k]
        score[:, k] += MIXTURE * (cells.share_nK[:, k] > 0.1)
    return score


def _looks(cells: _Cells, ground_CHW: Float32Array, across: list[csr_array]) -> Float32Array:
    """(n, K): how much each cell's reflectance speaks for each class against its own, sd 1."""
    area = _summed(np.ones(ground_CHW.shape[1:]), across)
    bands = np.stack(
        [np.log(_summed(band, across) / area + 1).ravel() for band in ground_CHW], axis=-1
    )
    likelihood = np.full(cells.share_nK.shape, -1e3)
    for k in range(_CLASSES):
        own = bands[cells.class_n == k]
        if len(own) < 10:
            continue
        inverse = np.linalg.inv(np.cov(own.T) + 0.01 * np.eye(len(bands[0])))
        away = bands - own.mean(axis=0)
        spread = np.linalg.slogdet(inverse)[1]
        likelihood[:, k] = 0.5 * (spread - np.einsum("ni,ij,nj->n", away, inverse, away))
    looks = likelihood - likelihood[np.arange(len(likelihood)), cells.class_n][:, None]
    for m in range(_CLASSES):
        of_class = cells.class_n == m
        if of_class.any():
            looks[of_class] -= looks[of_class].mean(axis=0)
            looks[of_class] /= looks[of_class].std(axis=0) + 1e-9
    return np.asarray(looks.clip(-2, 2), np.float32)


def _target(shares: Float64Array) -> Float64Array:
    """(K, K) P(product | truth): the published, its errors scaled to its OA at these shares."""
    rate = DONG_PRODUCT_10M / DONG_PRODUCT_10M.sum(axis=0)
    wrong = float(shares @ (1 - np.diag(rate)))
    return _scaled(rate, (1 - PUBLISHED_OA) / wrong)


def _scaled(rate: Float64Array, factor: float) -> Float64Array:
    """Column-stochastic ``rate`` with its off-diagonal entries multiplied."""
    off = rate * (1 - np.eye(_CLASSES)) * factor
    off *= np.minimum(1, 0.95 / np.maximum(off.sum(axis=0), 1e-12))
    scaled: Float64Array = off + np.diag(1 - off.sum(axis=0))
    return scaled


def _calibrated(cells: _Cells, index_HW: Int64Array, score: Float32Array) -> Int64Array:
    """(n,) class of every cell such that the confusion with the truth is the published one.

    DatasetError where the overall accuracy cannot be brought within 0.005 of it.
    """
    mixed = _matrix(cells.class_n, cells, index_HW).astype(np.float64)
    totals = mixed.sum(axis=0)
    present = totals > 0
    shares = totals / totals.sum()
    target = _target(shares)
    mixed[:, present] /= totals[present]
    wanted = target.copy()
    for _ in range(_ROUNDS // 2):
        rate = _unmixed(wanted, mixed, shares)
        found = _matrix(_confused(cells.class_n, rate, score), cells, index_HW) / np.maximum(
            totals, 1
        )
        wanted *= ((target + 1e-4) / (found + 1e-4)) ** 0.7
        wanted /= wanted.sum(axis=0)
    low, high = 0.5, 1.5
    for _ in range(_ROUNDS):
        factor = (low + high) / 2
        chosen_n = _confused(cells.class_n, _scaled(rate, factor), score)
        off = _accuracy(_matrix(chosen_n, cells, index_HW)) - PUBLISHED_OA
        if abs(off) < _TOLERANCE:
            break
        low, high = (factor, high) if off > 0 else (low, factor)
    if abs(off) > _OFF_AT_MOST:
        raise DatasetError(
            f"a landscape of {index_HW.shape[0]} x {index_HW.shape[1]} pixels: its product is "
            f"right on {100 * (PUBLISHED_OA + off):.1f} % of them, {100 * PUBLISHED_OA:.1f} % are "
            "wanted and cannot be reached; choose another seed or a larger size"
        )
    return chosen_n


def _unmixed(wanted: Float64Array, mixed: Float64Array, shares: Float64Array) -> Float64Array:
    """(K, K) P(product | majority) that after the mixing comes nearest to P(product | truth).

    Least Kullback-Leibler divergence under the classes' shares, by expectation maximisation.
    """
    rate: Float64Array = np.maximum(wanted, 1e-6) / np.maximum(wanted, 1e-6).sum(axis=0)
    weight = mixed * shares
    for _ in range(300):
        rate *= (wanted / np.maximum(rate @ mixed, 1e-12)) @ weight.T
        rate /= np.maximum(rate.sum(axis=0), 1e-12)
    return rate


def _confused(class_n: Int64Array, rate: Float64Array, score: Float32Array) -> Int64Array:
    """Of every class, the cells most readily taken for another become it, as many as ``rate`` says.

    So the shares are exact, and all errors lie where the scores put them.
    """
    chosen_n = class_n.copy()
    for own in range(_CLASSES):
        members = np.flatnonzero(class_n == own)
        free = np.ones(len(members), bool)
        for other in np.argsort(-rate[:, own], kind="stable"):
            count = round(float(rate[other, own]) * len(members))
            if other == own or not count:
                continue
            candidates = np.flatnonzero(free)
            count = min(count, len(candidates))
            order = np.argsort(-score[members[candidates], other], kind="stable")
            taken = candidates[order[:count]]
            chosen_n[members[taken]] = other
            free[taken] = False
    return chosen_n


def _matrix(chosen_n: Int64Array, cells: _Cells, index_HW: Int64Array) -> Int64Array:
    """(K, K) pixels: rows the class of the pixel's cell, columns the true class."""
    pairs = chosen_n[cells.of_pixel] * _CLASSES + index_HW
    counted: Int64Array = np.bincount(pairs.ravel(), minlength=_CLASSES**2).astype(np.int64)
    return counted.reshape(_CLASSES, _CLASSES)


def _accuracy(matrix: Int64Array) -> float:
    return float(np.trace(matrix) / matrix.sum())
