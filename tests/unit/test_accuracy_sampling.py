"""Samples: a map and a reference are compared at the same place, once, and only where asked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafine.accuracy import ConfusionMatrix, estimate, sample, sampling
from terrafine.errors import AccuracyError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN, UInt8Array

CODES = SEVEN.codes
GRID = PixelGrid("EPSG:32650", 3.0, 3.0, 1.5, 0.5)
# Global pixel numbers of the northern hemisphere: rows are negative.
EXTENT = Window(-1_400_037, 150_011, 100, 130)


@dataclass
class WholeRaster:
    """A raster over EXTENT; 255 (map) or 0 (reference) around it. Remembers what was read."""

    codes: UInt8Array
    outside: int

    def __post_init__(self) -> None:
        self.windows: list[Window] = []

    def __call__(self, window: Window) -> UInt8Array:
        self.windows.append(window)
        out = np.full(window.shape, self.outside, np.uint8)
        common = window.intersection(EXTENT)
        if common is not None:
            out[common.slices(window)] = self.codes[common.slices(EXTENT)]
        return out

    def read(self, grid: PixelGrid, window: Window) -> UInt8Array:
        assert grid == GRID
        return self(window)


@dataclass
class ShiftedPoints:
    """Points in a CRS that lies 500 km west and 100 m south of GRID's."""

    x: np.ndarray
    y: np.ndarray
    codes: UInt8Array
    crs: str = "EPSG:9999"

    def to_crs(self, crs: str) -> ShiftedPoints:
        assert self.crs == "EPSG:9999"
        return replace(self, x=self.x + 500_000, y=self.y + 100, crs=crs)


def raster(seed: int, outside: int, first: int = 0) -> WholeRaster:
    rng = np.random.default_rng(seed)
    return WholeRaster(rng.integers(first, 5, EXTENT.shape).astype(np.uint8), outside)


def points_at(pixels: list[tuple[float, float]], codes: list[int]) -> ShiftedPoints:
    """Points at fractional global (row, column), as the shifted CRS has them."""
    rows, cols = np.array(pixels, float).reshape(-1, 2).T
    return ShiftedPoints(
        GRID.x0 + cols * GRID.dx - 500_000,
        GRID.y0 - rows * GRID.dy - 100,
        np.array(codes, np.uint8),
    )


def test_a_raster_reference_is_sampled_at_every_pixel_of_the_windows() -> None:
    land, reference = raster(0, 255), raster(1, 0)
    samples = sample(land, GRID, [EXTENT], reference, unit=16)
    expected = ConfusionMatrix.from_codes(land.codes, reference.codes, CODES)
    found = estimate(samples, CODES)
    np.testing.assert_array_equal(found.matrix.counts, expected.counts)
    assert samples.size == (reference.codes > 0).sum()
    assert found.unmapped == ((reference.codes > 0) & (land.codes == 0)).sum()
    # Blocks lie on the global grid: 1 400 037 and 150 011 are no multiples of 16.
    rows = np.unique(np.arange(EXTENT.row, EXTENT.stop_row) // 16).size
    cols = np.unique(np.arange(EXTENT.col, EXTENT.stop_col) // 16).size
    assert found.units == rows * cols


@pytest.mark.parametrize("tile", [7, 33, 2048])
def test_what_is_read_at_once_changes_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    land, other, reference = raster(0, 255), raster(2, 255), raster(1, 0)
    whole = estimate(sample(land, GRID, [EXTENT], reference, read_other=other, unit=16), CODES)
    monkeypatch.setattr(sampling, "_RASTER_TILE", tile)
    pieces = sample(land, GRID, [EXTENT], reference, read_other=other, unit=16)
    assert estimate(pieces, CODES).figures == whole.figures
    assert estimate(pieces, CODES).units == whole.units
    assert max(w.width for w in land.windows[1:]) <= tile


def test_pixels_outside_the_held_out_windows_are_not_looked_at() -> None:
    held_out = [Window(EXTENT.row, EXTENT.col, 20, 20), Window(EXTENT.row + 20, EXTENT.col, 20, 20)]
    land, reference = raster(0, 255), raster(1, 0, first=1)
    samples = sample(land, GRID, held_out, reference, unit=16)
    assert samples.size == 2 * 20 * 20
    for window in [*land.windows, *reference.windows]:
        assert any(window.intersection(chip) == window for chip in held_out)


def test_overlapping_windows_would_count_a_pixel_twice() -> None:
    chips = [Window(0, 0, 16, 16), Window(40, 0, 16, 16), Window(15, 15, 16, 16)]
    with pytest.raises(AccuracyError, match="overlap"):
        sample(raster(0, 255), GRID, chips, raster(1, 0), unit=16)


def test_a_second_map_is_sampled_at_the_same_places() -> None:
    land, product, reference = raster(0, 255), raster(2, 255), raster(1, 0)
    samples = sample(land, GRID, [EXTENT], reference, read_other=product, unit=16)
    expected = ConfusionMatrix.from_codes(product.codes, reference.codes, CODES)
    found = estimate(samples.of_other(), CODES)
    np.testing.assert_array_equal(found.matrix.counts, expected.counts)
    points = points_at([(EXTENT.row + 3.5, EXTENT.col + 9.5)], [2])
    at_point = sample(land, GRID, [EXTENT], points, read_other=product, unit=16)
    assert at_point.mapped[0] == land.codes[3, 9]
    assert at_point.other is not None
    assert at_point.other[0] == product.codes[3, 9]


inside = st.floats(0.01, 0.99)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-30, 129), st.integers(-30, 159), inside, inside, st.integers(0, 4)),
        max_size=25,
    )
)
def test_a_point_gets_the_class_of_the_pixel_that_holds_it(
    drawn: list[tuple[int, int, float, float, int]],
) -> None:
    land = raster(0, 255)
    points = points_at(
        [(EXTENT.row + row + dy, EXTENT.col + col + dx) for row, col, dy, dx, _ in drawn],
        [code for *_, code in drawn],
    )
    samples = sample(land, GRID, list(EXTENT.tiles(64)), points, unit=16)
    snapped = EXTENT.snapped(64)
    expected = sorted(
        (int(land(Window(EXTENT.row + row, EXTENT.col + col, 1, 1))[0, 0]), code)
        for row, col, _, _, code in drawn
        if code and Window(EXTENT.row + row, EXTENT.col + col, 1, 1).intersection(snapped)
    )
    assert sorted(zip(samples.mapped.tolist(), samples.reference.tolist(), strict=True)) == expected
    assert samples.unit is not None
    assert np.unique(samples.unit).size == samples.unit.size, "each point is a unit of its own"
    assert [drawn[i][4] for i in samples.unit] == samples.reference.tolist()


def test_a_window_ends_where_its_neighbour_begins() -> None:
    corner = EXTENT.row + 10, EXTENT.col + 10
    window = Window(*corner, 5, 5)
    inside = [(0, 0), (0, 4), (4, 0), (4, 4)]
    outside = [(-1, 0), (0, -1), (5, 0), (0, 5)]
    for places, size in ((inside, 4), (outside, 0)):
        pixels = [(corner[0] + row + 0.5, corner[1] + col + 0.5) for row, col in places]
        assert (
            sample(raster(0, 255), GRID, [window], points_at(pixels, [1] * 4), unit=16).size == size
        )


def test_many_points_of_one_tile_are_read_at_once_and_nothing_else() -> None:
    land = raster(0, 255)
    pixels = [(EXTENT.row + 10.5 + i, EXTENT.col + 20.5 + i) for i in range(5)]
    sample(land, GRID, [EXTENT], points_at(pixels, [1] * 5), unit=16)
    assert len(land.windows) <= 4
    assert sum(w.height * w.width for w in land.windows) <= 25


def test_points_that_the_zone_cannot_hold_are_no_samples() -> None:
    points = points_at([(EXTENT.row + 0.5, EXTENT.col + 0.5)] * 2, [1, 1])
    points.x[0] = np.inf
    assert sample(raster(0, 255), GRID, [EXTENT], points, unit=16).size == 1


@pytest.mark.parametrize("windows", [[], [Window(0, 0, 64, 64)]])
def test_without_any_reference_in_the_windows_there_is_no_sample(windows: list[Window]) -> None:
    points = points_at([(EXTENT.row + 0.5, EXTENT.col + 0.5)], [1])
    for reference in (raster(1, 0), points):
        samples = sample(
            raster(0, 255), GRID, windows, reference, read_other=raster(2, 255), unit=16
        )
        assert samples.size == 0
        assert samples.of_other().size == 0
        assert estimate(samples, CODES).figures["overall_accuracy"].value is None


def test_a_reader_that_gives_another_window_is_refused() -> None:
    with pytest.raises(AccuracyError, match=r"\(5, 5\) pixels"):
        sample(lambda _: np.ones((5, 5), np.uint8), GRID, [EXTENT], raster(1, 0), unit=16)
