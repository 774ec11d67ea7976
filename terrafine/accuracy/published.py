"""The two confusion matrices that Dong et al. 2020 printed.

Rows: mapped class; columns: reference class; both in the order of :data:`terrafine.legend.SEVEN`
(cropland, woodland, grassland, water, impervious, bare land, snow/ice). 1940 photo-interpreted
points in China, none of which was trained on.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from terrafine.legend import SEVEN, Legend

Int64Array = npt.NDArray[np.int64]


def _matrix(rows: list[list[int]]) -> Int64Array:
    matrix = np.array(rows, np.int64)
    matrix.flags.writeable = False  # shared by everyone who imports it
    return matrix


# Table 2: FROM-GLC10 through its crosswalk, the label product the paper trains on.
DONG_PRODUCT_10M: Final[Int64Array] = _matrix(
    [
        [263, 34, 32, 3, 36, 1, 0],
        [27, 373, 30, 0, 2, 0, 0],
        [32, 17, 188, 1, 12, 32, 0],
        [0, 3, 1, 89, 1, 3, 2],
        [9, 1, 2, 2, 132, 1, 0],
        [5, 9, 49, 2, 8, 526, 3],
        [0, 0, 1, 0, 0, 3, 5],
    ]
)

# Table 3: the paper's own 3-m map.
DONG_MAP_3M: Final[Int64Array] = _matrix(
    [
        [282, 27, 20, 3, 20, 1, 0],
        [21, 391, 26, 2, 6, 0, 1],
        [22, 10, 223, 1, 7, 19, 0],
        [1, 1, 0, 84, 2, 2, 0],
        [8, 1, 2, 4, 150, 2, 0],
        [2, 7, 32, 3, 6, 542, 6],
        [0, 0, 0, 0, 0, 0, 3],
    ]
)

# Crosswalk -> what is published of the product that it is for.
_PRODUCTS: Final = {"FROM-GLC10": DONG_PRODUCT_10M}
# Samples added to every cell: what 1940 points did not show is rare, not impossible.
_UNSEEN = 0.2


def published_confusion(crosswalk: object, legend: Legend) -> tuple[tuple[float, ...], ...] | None:
    """How a label product confuses classes: row = true class, column = what it says, sums 1.

    Both in the order of ``legend``. None where nothing is published of the product that
    ``crosswalk`` is for, or only for other classes than the legend's.
    """
    matrix = _PRODUCTS.get(crosswalk) if isinstance(crosswalk, str) else None
    if matrix is None or legend.digest != SEVEN.digest:
        return None
    counts = matrix.T + _UNSEEN
    shares = counts / counts.sum(axis=1, keepdims=True)
    return tuple(tuple(float(share) for share in row) for row in shares)
