"""Imagery held in arrays, and a quick model, for tests of mapping: no file, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import cv2
import numpy as np

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapOutcome, Place, Prediction, map_all
from terrafine.spec import EnhanceSpec, MappingSpec

GRID = PixelGrid("EPSG:32650", 3.0, 3.0, 1.5, 0.75)
ENHANCED = SEVEN.code_of("impervious")


@dataclass(frozen=True)
class ArrayImagery:
    """``images``: (window, image_CHW) of every scene, first on top."""

    images: Sequence[tuple[Window, np.ndarray]]
    zone: str = "epsg32650"
    grid: PixelGrid = GRID
    fill: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def window(self) -> Window:
        return reduce(Window.union, (window for window, _ in self.images))

    def touches(self, window: Window) -> bool:
        return any(window.intersection(own) for own, _ in self.images)

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        bands = self.images[0][1].shape[0]
        image_CHW = np.full((bands, *window.shape), self.fill, np.uint16)
        source_HW = np.zeros(window.shape, np.uint16)
        for number, (own, stored_CHW) in reversed(list(enumerate(self.images, 1))):
            part = own.intersection(window)
            if part is not None:
                found = stored_CHW[:, *part.slices(own)]
                valid = (found != self.fill).all(axis=0)
                to = part.slices(window)
                image_CHW[:, *to] = np.where(valid, found, image_CHW[:, *to])
                source_HW[to] = np.where(valid, number, source_HW[to])
        return image_CHW, source_HW


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(4, height, width) uint16 in 1..255, patches of a dozen pixels."""
    noise = rng.normal(size=(height, width, 4))
    field_HWC = cv2.GaussianBlur(noise, (0, 0), 4)
    spread = 128 + 500 * field_HWC
    return np.ascontiguousarray(spread.clip(1, 255).astype(np.uint16).transpose(2, 0, 1))


def two_scenes(row: int = -310, col: int = 75, seed: int = 0) -> ArrayImagery:
    """Two overlapping scenes off every line of the grid, the upper one with a hole."""
    rng = np.random.default_rng(seed)
    upper, lower = smooth(rng, 170, 210), smooth(rng, 150, 190)
    upper[:, 60:100, 30:140] = 0
    return ArrayImagery(
        [(Window(row, col, 170, 210), upper), (Window(row + 90, col + 120, 150, 190), lower)]
    )


@dataclass
class QuickPredictor:
    """A model whose answer, like a network's, depends on the pixel, on its neighbours and, as
    instance norm does, on the whole window: cut the windows elsewhere and the map changes."""

    window: int
    fill: int = 0
    reach: int = 8
    asked: list[tuple[int, ...]] = field(default_factory=list)

    def predict(self, windows_NCHW: np.ndarray) -> Prediction:
        self.asked.append(windows_NCHW.shape)
        valid = (windows_NCHW != self.fill).all(axis=1)
        first = windows_NCHW[:, 0].astype(np.int64)
        whole = first.sum(axis=(1, 2), keepdims=True) % 29
        near = first + np.roll(first, self.reach, axis=1) + np.roll(first, -self.reach, axis=2)
        enhanced = (near // 3 + whole).clip(0, 255)
        other = (255 - enhanced) * 3 // 4
        code = 1 + windows_NCHW[:, 1] // 64 % 4
        return Prediction(*((array * valid).astype(np.uint8) for array in (enhanced, code, other)))


def small_spec(**changes: object) -> MappingSpec:
    """Cores of 32, halo 8, blocks of 32, shards of 64, waves of 3."""
    values: dict[str, object] = {
        "core": 32,
        "halo": 8,
        "shard": 64,
        "wave": 3,
        "enhance": EnhanceSpec(block=32, threshold=140),
    }
    return MappingSpec.model_validate({**values, **changes})


def map_two_scenes(place: Place, **changes: Any) -> MapOutcome:
    """Map :func:`two_scenes` by a quick model; ``changes`` are arguments of ``map_all``."""
    imagery, spec = two_scenes(), small_spec()
    settings: dict[str, Any] = {
        "spec": spec,
        "legend": SEVEN,
        "scenes": ("upper", "lower"),
        "model_digest": "m",
        "spec_digest": "s",
        **changes,
    }
    predictor = settings.pop("open_predictor", partial(QuickPredictor, spec.window))
    return map_all(place, {imagery.zone: imagery}, predictor, **settings)
