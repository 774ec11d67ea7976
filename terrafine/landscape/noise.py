"""Random fields and random numbers by place: what everything in the landscape is made of."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.special import ndtri

Float32Array = npt.NDArray[np.float32]
UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]

_SHIFTS: Final = (16, 13)
_FACTORS: Final = (0x85EBCA6B, 0xC2B2AE35)


def fractal(shape: tuple[int, int], rng: np.random.Generator, *, slope: float) -> Float32Array:
    """(H, W) random field, mean 0 and sd 1, whose amplitude falls as frequency ** -slope.

    About 1.6..2.2 looks like terrain, about 1 like vegetation. Cut from a larger periodic field,
    so that opposite edges differ.
    """
    height, width = (scipy.fft.next_fast_len(side + side // 4, real=True) for side in shape)
    white = rng.standard_normal((height, width), dtype=np.float32)
    spectrum = scipy.fft.rfft2(white)
    frequency = np.hypot(
        np.fft.fftfreq(height, 1 / height)[:, None] * (min(height, width) / height),
        np.fft.rfftfreq(width, 1 / width)[None] * (min(height, width) / width),
    )
    frequency[0, 0] = np.inf
    field = scipy.fft.irfft2(spectrum * (frequency**-slope).astype(np.float32), s=(height, width))
    return standard(field[: shape[0], : shape[1]].astype(np.float32))


def smooth(shape: tuple[int, int], rng: np.random.Generator, *, sigma: float) -> Float32Array:
    """(H, W) random field, mean 0 and sd 1, correlated over about ``sigma`` pixels."""
    step = max(1, int(sigma / 3))
    coarse = tuple(side // step + 3 for side in shape)
    white = rng.standard_normal(coarse, dtype=np.float32)
    field = cv2.GaussianBlur(white, (0, 0), sigma / step)
    if step > 1:
        size = (coarse[1] * step, coarse[0] * step)
        field = cv2.resize(field, size, interpolation=cv2.INTER_CUBIC)
    return standard(np.asarray(field[: shape[0], : shape[1]], np.float32))


def standard(field: npt.NDArray[np.floating]) -> Float32Array:
    """The field with mean 0 and sd 1."""
    spread = max(float(field.std()), 1e-12)
    scaled: Float32Array = ((field - field.mean()) / spread).astype(np.float32)
    return scaled


def ranks(field: npt.NDArray[np.floating]) -> Float32Array:
    """Every value's share of smaller values, 0..1, by a histogram of 4096 steps."""
    low, high = float(field.min()), float(field.max())
    step = ((field - low) * (4095 / max(high - low, 1e-12))).astype(np.int32)
    cumulative = np.cumsum(np.bincount(step.ravel(), minlength=4096))
    return (cumulative[step] / field.size).astype(np.float32)


def mixed(*parts: int | npt.NDArray[np.integer]) -> UInt32Array:
    """A 32-bit hash of integers or integer arrays (murmur3's finaliser after every part)."""
    state = np.full(1, 0x9E3779B9, np.uint32)
    for part in parts:
        number = np.uint32(part) if isinstance(part, int) else part.astype(np.uint32)
        state = state * np.uint32(5) ^ number
        for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
            state = (state ^ (state >> np.uint32(shift))) * np.uint32(factor)
        state = state ^ (state >> np.uint32(16))
    return state


def uniform(*parts: int | npt.NDArray[np.integer]) -> Float32Array:
    """Uniform in [0, 1), a function of the integers."""
    return (mixed(*parts) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def normal(*parts: int | npt.NDArray[np.integer]) -> Float32Array:
    """Standard normal, a function of the integers."""
    values: Float32Array = ndtri(uniform(*parts).clip(1e-6, 1 - 1e-6)).astype(np.float32)
    return values
