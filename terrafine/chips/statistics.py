"""Mean and standard deviation of the bands, for the network's input scaling."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from terrafine.errors import ChipStoreError
from terrafine.raster import UInt16Array

# More chips than this change nothing in the third digit; of a larger set every n-th is read.
MAX_CHIPS = 2000


class Images(Protocol):
    """What is needed of a chip store."""

    @property
    def fill(self) -> int:
        """The uint16 that marks missing pixels."""

    @property
    def bands(self) -> int:
        """Bands of an image."""

    def image(self, index: int) -> UInt16Array:
        """image_CHW of one chip."""


def band_statistics(
    store: Images, indexes: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(mean_C, std_C), float64 in the sensor's numbers, over the valid pixels of some chips.

    Computed in whole numbers, so that the order of the chips cannot change a bit of it.
    ChipStoreError when the chips hold no valid pixel, or a band only one value.
    """
    count = 0
    sums, squares = [0] * store.bands, [0] * store.bands
    step = max(1, math.ceil(len(indexes) / MAX_CHIPS))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for found in pool.map(partial(_sums, store), indexes[::step].tolist()):
            count += found.count
            sums = [a + b for a, b in zip(sums, found.sums, strict=True)]
            squares = [a + b for a, b in zip(squares, found.squares, strict=True)]
    if count == 0:
        raise ChipStoreError(
            f"none of {len(indexes)} chips holds a valid pixel, so the bands have no mean; "
            "check imagery.nodata"
        )
    variances = [(count * q - s * s) / count**2 for s, q in zip(sums, squares, strict=True)]
    for band, variance in enumerate(variances, start=1):
        if variance == 0:
            raise ChipStoreError(
                f"band {band} holds the one value {sums[band - 1] // count} in all {len(indexes)} "
                "training chips and cannot be scaled; leave it out of imagery.bands"
            )
    return np.array([s / count for s in sums]), np.sqrt(np.array(variances))


@dataclass(frozen=True)
class _Sums:
    """Of the valid pixels of one chip, band by band."""

    count: int
    sums: list[int]
    squares: list[int]


def _sums(store: Images, index: int) -> _Sums:
    image_CHW = store.image(index)
    valid_HW = (image_CHW != store.fill).all(axis=0)
    values_CN = image_CHW[:, valid_HW].astype(np.uint64)
    return _Sums(
        count=int(np.count_nonzero(valid_HW)),
        sums=[int(values.sum()) for values in values_CN],
        squares=[int((values * values).sum()) for values in values_CN],
    )
