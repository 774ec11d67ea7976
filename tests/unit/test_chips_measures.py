"""Agreement of a chip, and the bands' mean and standard deviation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from terrafine.chips import agreement, band_statistics
from terrafine.chips.statistics import MAX_CHIPS
from terrafine.errors import ChipStoreError


def test_agreement_is_the_share_of_labelled_pixels_with_the_same_class() -> None:
    label_HW = np.array([[1, 2, 0], [3, 0, 5]], np.uint8)
    predicted_HW = np.array([[1, 2, 4], [2, 7, 1]], np.uint8)
    assert agreement(predicted_HW, label_HW) == 0.5
    assert agreement(label_HW, label_HW) == 1.0


def test_a_prediction_of_no_class_does_not_agree_with_no_label() -> None:
    assert agreement(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)) == 0.0
    with pytest.raises(ValueError, match="differ"):
        agreement(np.zeros((4, 4), np.uint8), np.zeros((1, 4), np.uint8))


@dataclass
class Held:
    """Chips in memory."""

    images: np.ndarray
    fill: int = 65535
    read: int = 0

    @property
    def bands(self) -> int:
        return self.images.shape[1]

    def image(self, index: int) -> np.ndarray:
        self.read += 1
        return self.images[index % len(self.images)]


def test_statistics_are_those_of_the_valid_pixels_of_the_chosen_chips() -> None:
    images = np.random.default_rng(0).integers(0, 65535, (5, 3, 16, 16)).astype(np.uint16)
    images[0, 1, :5] = 65535  # one band missing: the pixel is missing in all
    chosen = np.array([0, 2, 4])
    mean_C, std_C = band_statistics(Held(images), chosen)
    valid = (images[chosen] != 65535).all(axis=1)
    for band in range(3):
        values = images[chosen, band][valid].astype(np.float64)
        assert mean_C[band] == pytest.approx(values.mean(), rel=1e-12)
        assert std_C[band] == pytest.approx(values.std(), rel=1e-9)


def test_statistics_do_not_depend_on_the_order_of_the_chips() -> None:
    images = np.random.default_rng(1).integers(0, 65535, (7, 2, 16, 16)).astype(np.uint16)
    forward = band_statistics(Held(images), np.arange(7))
    backward = band_statistics(Held(images), np.arange(7)[::-1])
    assert np.array_equal(forward, backward)


def test_of_very_many_chips_some_are_read() -> None:
    held = Held(np.random.default_rng(2).integers(0, 99, (3, 1, 2, 2)).astype(np.uint16))
    band_statistics(held, np.arange(10 * MAX_CHIPS + 1))
    assert MAX_CHIPS / 2 < held.read <= MAX_CHIPS


def test_what_has_no_statistics_is_refused() -> None:
    empty = Held(np.full((2, 3, 4, 4), 65535, np.uint16))
    with pytest.raises(ChipStoreError, match=r"none of 2 chips holds a valid pixel.*nodata"):
        band_statistics(empty, np.arange(2))
    images = np.random.default_rng(3).integers(0, 99, (2, 2, 4, 4)).astype(np.uint16)
    images[:, 1] = 7
    with pytest.raises(ChipStoreError, match=r"band 2 holds the one value 7.*imagery\.bands"):
        band_statistics(Held(images), np.arange(2))
