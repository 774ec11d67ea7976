"""Which kind of land lies where, in the large: by elevation, slope, moisture and chance."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from terrafine.landscape.mosaic import Pieces
from terrafine.landscape.noise import Float32Array, Int64Array, fractal, smooth
from terrafine.landscape.terrain import Terrain
from terrafine.legend import UInt8Array

FARMLAND, WOOD, GRASS, BARE = range(4)
ZONES: Final = ("farmland", "wood", "grass", "bare")

_ROUNDS = 60
_EVERY = 4


def suitability(terrain: Terrain, rng: np.random.Generator) -> Float32Array:
    """(4, H, W): how well each of ZONES does at every place."""
    shape = terrain.height.shape
    high, steep, wet = terrain.height, terrain.steepness, terrain.moisture

    def chance() -> Float32Array:
        coarse = smooth(shape, rng, sigma=40)
        return (0.5 * coarse + 0.4 * fractal(shape, rng, slope=1.65)).astype(np.float32)

    return np.stack(
        [
            1.5 * (1 - steep) + 1.6 * (1 - high) + 0.3 * wet + 0.5 * chance(),
            0.8 * steep + 1.6 * wet + 0.8 * high + chance(),
            1.6 + 0.5 * (high - 0.5) + chance(),
            1.8 * (1 - wet) + 0.5 * steep + 1.2 * high**3 + chance(),
        ]
    ).astype(np.float32)


def divide(score: Float32Array, farm_parcels: Pieces, targets: Float32Array) -> UInt8Array:
    """(H, W) zone numbers, each on about its share in ``targets`` (4,).

    The zones compete by ``score``; farmland is taken or left by whole parcels.
    """
    bias = _balance(score[:, ::_EVERY, ::_EVERY].reshape(len(ZONES), -1), targets)
    lifted = score + bias[:, None, None]
    # without specks of a pixel or two
    best = cv2.medianBlur(lifted[1:].argmax(axis=0).astype(np.uint8), 5)
    wild: UInt8Array = np.asarray(best, np.uint8) + np.uint8(1)
    margin = lifted[FARMLAND] - lifted[1:].max(axis=0)
    _, parcel = np.unique(farm_parcels.number, return_inverse=True)
    parcel = parcel.ravel()
    mean = np.bincount(parcel, margin.ravel()) / np.bincount(parcel)
    wild[(mean > 0)[parcel].reshape(wild.shape)] = FARMLAND
    return wild


def _balance(score_KN: Float32Array, targets: Float32Array) -> Float32Array:
    """What to add to each score so that each wins on its share."""
    bias = np.zeros(len(targets), np.float32)
    for turn in range(_ROUNDS):
        won: Int64Array = np.bincount(
            (score_KN + bias[:, None]).argmax(axis=0), minlength=len(targets)
        )
        share = np.maximum(won / score_KN.shape[1], 1e-4)
        bias += (0.5 * 0.96**turn) * np.log(targets / share).astype(np.float32)
    return bias
