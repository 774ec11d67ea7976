"""Where a map and the label product differ most: the places worth looking at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from terrafine.geometry import Window
from terrafine.legend import NO_CLASS, UNWRITTEN, UInt8Array


@dataclass(frozen=True)
class Zoom:
    """A place where map and product differ.

    ``window``: global pixel numbers. ``differing``: share (0..1) of the window's pixels that have
    a class in both and not the same one.
    """

    window: Window
    differing: float


def differing(map_HW: UInt8Array, product_HW: UInt8Array) -> npt.NDArray[np.bool_]:
    """(H, W) bool: pixels with a class in both, and not the same one."""
    if map_HW.shape != product_HW.shape:
        raise ValueError(f"map {map_HW.shape} and product {product_HW.shape} differ in shape")
    different: npt.NDArray[np.bool_] = (
        _has_class(map_HW) & _has_class(product_HW) & (map_HW != product_HW)
    )
    return different


def most_different(
    map_HW: UInt8Array,
    product_HW: UInt8Array,
    *,
    window: Window,
    size: int,
    count: int,
    step: int = 1,
) -> tuple[Zoom, ...]:
    """Up to ``count`` windows of ``size`` pixels a side, none overlapping, of most disagreement.

    ``map_HW``, ``product_HW``: (H, W) uint8 codes at every ``step``-th pixel of ``window``
    (global pixel numbers). The windows are in global pixel numbers too, lie inside ``window``,
    come most disagreement first (ties: northernmost, then westernmost), and each holds at least
    one differing pixel. Greedy over an integral image (Crow 1984: a window's sum from four
    corners), so that the cost does not grow with ``size``.
    """
    different = differing(map_HW, product_HW)
    rows, cols = different.shape
    height, width = (min(max(size // step, 1), side) for side in (rows, cols))
    sums = _window_sums(different, height, width)
    found: list[Zoom] = []
    while len(found) < count and sums.size and sums.max() > 0:
        row, col = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
        place = Window(
            window.row + row * step, window.col + col * step, height * step, width * step
        )
        inside = place.intersection(window)
        assert inside is not None
        found.append(Zoom(inside, float(sums[row, col]) / (height * width)))
        sums[
            max(row - height + 1, 0) : row + height,
            max(col - width + 1, 0) : col + width,
        ] = -1
    return tuple(found)


def _has_class(codes_HW: UInt8Array) -> npt.NDArray[np.bool_]:
    has_class: npt.NDArray[np.bool_] = (codes_HW != NO_CLASS) & (codes_HW != UNWRITTEN)
    return has_class


def _window_sums(
    different: npt.NDArray[np.bool_], height: int, width: int
) -> npt.NDArray[np.int64]:
    """(H - height + 1, W - width + 1): differing pixels of the window at every upper-left pixel."""
    integral = np.zeros((different.shape[0] + 1, different.shape[1] + 1), np.int64)
    integral[1:, 1:] = different.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    sums: npt.NDArray[np.int64] = (
        integral[height:, width:]
        - integral[:-height, width:]
        - integral[height:, :-width]
        + integral[:-height, :-width]
    )
    return sums
