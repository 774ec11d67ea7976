"""Mode overviews of a class map: each step halves the resolution and keeps the commonest class.

A mean or a nearest pixel would make classes up or lose thin ones at random; the mode shows, at
every scale, the class that covers most of the ground below.
"""

from __future__ import annotations

import cv2
import numpy as np

from terrafine.legend import NO_CLASS, UNWRITTEN, UInt8Array

# Arrays whose longer side is at most this need no overview: a screen shows them whole.
SMALLEST_OVERVIEW = 256

_BAND = 256


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
    missing = rows * factor - height, cols * factor - width
    padded = codes_HW
    if any(missing):
        padded = np.pad(codes_HW, [(0, n) for n in missing], constant_values=UNWRITTEN)
    if factor == 2:
        # a band at a time: what stays in the processor's cache is done in half the time
        bands = range(0, 2 * rows, _BAND)
        return np.concatenate([_mode_of_four(padded[start : start + _BAND]) for start in bands])
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


def _mode_of_four(codes_HW: UInt8Array) -> UInt8Array:
    """:func:`mode_downsample` by 2, of even sides, some thirty times faster: by sorting."""
    # 0..253 for classes, then 254 for no class and 255 for never written
    rank = np.arange(-1, 255).astype(np.uint8)
    rank[[NO_CLASS, UNWRITTEN]] = 254, 255
    code = np.argsort(rank).astype(np.uint8)
    ranks = cv2.LUT(codes_HW, rank)
    a, b, c, d = (np.ascontiguousarray(ranks[i::2, j::2]) for i in (0, 1) for j in (0, 1))
    for low, high in ((a, b), (c, d), (a, c), (b, d), (b, c)):
        smaller = np.minimum(low, high)
        np.maximum(low, high, out=high)
        low[:] = smaller
    # now a <= b <= c <= d, and what stands twice stands side by side
    best = np.where((c == d) & (c < 254), c, a)
    best = np.where((b == c) & (b < 254), b, best)
    best = np.where(a == b, a, best)
    return np.asarray(cv2.LUT(best, code), np.uint8)


def _classes_in(codes_HW: UInt8Array) -> list[int]:
    present = np.bincount(codes_HW.ravel(), minlength=256) > 0
    present[[NO_CLASS, UNWRITTEN]] = False
    return [int(code) for code in np.flatnonzero(present)]
