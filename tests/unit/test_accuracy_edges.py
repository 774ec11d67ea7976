"""The boundary zone: which pixels count as beside an edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrafine.accuracy import NearEdges, sample
from terrafine.geometry import PixelGrid, Window

GRID = PixelGrid("EPSG:32650", 3.0, 3.0, 0.0, 0.0)


class Drawn:
    """A reference held in memory; 0 outside."""

    def __init__(self, codes_HW: np.ndarray) -> None:
        self.codes_HW = codes_HW

    def read(self, grid: PixelGrid, window: Window) -> np.ndarray:
        out = np.zeros(window.shape, np.uint8)
        whole = Window(0, 0, *self.codes_HW.shape)
        part = window.intersection(whole)
        if part is not None:
            out[part.slices(window)] = self.codes_HW[part.slices(whole)]
        return out


def halves() -> np.ndarray:
    codes = np.ones((20, 20), np.uint8)
    codes[:, 10:] = 2
    return codes


def test_two_pixels_on_either_side_of_an_edge_count() -> None:
    near = NearEdges(Drawn(halves())).read(GRID, Window(0, 0, 20, 20))
    assert (near[:, 8:10] == 1).all()
    assert (near[:, 10:12] == 2).all()
    assert not near[:, :8].any()
    assert not near[:, 12:].any()


def test_the_rim_of_what_is_known_is_no_edge() -> None:
    codes = np.zeros((20, 20), np.uint8)
    codes[5:15, 5:15] = 3
    codes[7, 7] = 255
    assert not NearEdges(Drawn(codes)).read(GRID, Window(0, 0, 20, 20)).any()


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_windows_of_any_cut_give_the_same_zone(row: int, col: int, size: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 3, (20, 20)).astype(np.uint8)
    reference = NearEdges(Drawn(codes))
    part = Window(row, col, size, size)
    whole = Window(0, 0, 20, 20)
    assert (reference.read(GRID, part) == reference.read(GRID, whole)[part.slices(whole)]).all()


def test_a_map_that_is_right_inside_and_wrong_at_the_edge_has_a_boundary_accuracy_of_a_half() -> (
    None
):
    shifted = np.roll(halves(), 2, axis=1)
    shifted[:, :2] = 1
    reference = Drawn(halves())
    samples = sample(
        lambda window: Drawn(shifted).read(GRID, window),
        GRID,
        [Window(0, 0, 20, 20)],
        NearEdges(reference),
        unit=16,
    )
    right = samples.counts[samples.mapped == samples.reference].sum()
    assert right / samples.size == pytest.approx(0.5)
