"""The ground the landscape lies on: elevation, slope, moisture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from terrafine.landscape.noise import Float32Array, fractal, ranks, smooth

PIXEL_METRES = 3.0
# Height between the lowest valley and the highest summit of a scene of 3 km; wider scenes have
# more, as fractal terrain does.
_RELIEF_METRES = 240.0


@dataclass(frozen=True)
class Terrain:
    """All arrays (H, W) float32.

    ``elevation``: metres. ``height``, ``steepness``, ``moisture``: the rank within the scene,
    0..1, of elevation, of slope, and of how wet the ground is (low, flat, facing north).
    ``gradient_x``, ``gradient_y``: metres per metre, eastwards and southwards.
    """

    elevation: Float32Array
    height: Float32Array
    steepness: Float32Array
    moisture: Float32Array
    gradient_x: Float32Array
    gradient_y: Float32Array


def make_terrain(size: int, rng: np.random.Generator) -> Terrain:
    """Fractal terrain of ``size`` x ``size`` pixels: plains low down, ridges high up."""
    shape = (size, size)
    base = fractal(shape, rng, slope=1.9)
    angle = rng.uniform(0, 2 * np.pi)
    rows, cols = np.indices(shape, dtype=np.float32) / size - 0.5
    tilted = base + 1.6 * (cols * np.cos(angle) + rows * np.sin(angle)).astype(np.float32)
    height = ranks(tilted)
    # Plains are wide and flat, summits few and high: rank to the power of 2.2, the roughness
    # growing with height.
    ridges = 1 - np.abs(fractal(shape, rng, slope=1.7)) / 2
    relief = _RELIEF_METRES * (size * PIXEL_METRES / 3000) ** 0.6
    elevation = (relief * (height**2.2 * (0.8 + 0.3 * ridges))).astype(np.float32)
    elevation = cv2.GaussianBlur(elevation, (0, 0), 1.5)
    gradient_y, gradient_x = np.gradient(elevation, PIXEL_METRES)
    steepness = ranks(cv2.GaussianBlur(np.hypot(gradient_x, gradient_y), (0, 0), 3))
    north = ranks(cv2.GaussianBlur(gradient_y.astype(np.float32), (0, 0), 4))
    wet = 0.8 * smooth(shape, rng, sigma=max(size / 9, 16)) - 0.8 * height - 0.5 * steepness
    return Terrain(
        elevation,
        ranks(elevation),
        steepness,
        ranks(wet + 0.5 * north),
        gradient_x.astype(np.float32),
        gradient_y.astype(np.float32),
    )
