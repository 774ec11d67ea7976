"""Where a pixel lies: properties of windows and pixel grids."""

from __future__ import annotations

import math

import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window, zone_name

windows = st.builds(
    Window,
    row=st.integers(-10_000, 10_000),
    col=st.integers(-10_000, 10_000),
    height=st.integers(1, 3_000),
    width=st.integers(1, 3_000),
)
sizes = st.sampled_from([16, 64, 100, 512, 1024])
# Pixel sizes and corners as real scenes have them, PlanetScope to Landsat, Wake County's 28.5 m.
pixel_sizes = st.sampled_from([3.0, 10.0, 28.5, 30.0, 31.5, 0.5])
corners = st.integers(-(10**6), 10**7).map(lambda tenth: tenth / 10 + 0.05)


def transform_of(x: float, y: float, dx: float) -> Affine:
    return Affine(dx, 0, x, 0, -dx, y)


@given(windows, windows)
def test_an_intersection_is_the_pixels_that_both_windows_have(a: Window, b: Window) -> None:
    both = a.intersection(b)
    assert both == b.intersection(a)
    rows = range(max(a.row, b.row), min(a.stop_row, b.stop_row))
    cols = range(max(a.col, b.col), min(a.stop_col, b.stop_col))
    if not rows or not cols:
        assert both is None
    else:
        assert both == Window(rows.start, cols.start, len(rows), len(cols))


@given(windows, windows)
def test_a_union_holds_both_windows_and_no_smaller_one_does(a: Window, b: Window) -> None:
    around = a.union(b)
    assert around.intersection(a) == a
    assert around.intersection(b) == b
    assert around.row in (a.row, b.row)
    assert around.stop_col in (a.stop_col, b.stop_col)


@given(windows, sizes)
def test_tiles_cover_every_pixel_of_a_window_once_and_lie_on_the_global_grid(
    window: Window, size: int
) -> None:
    tiles = list(window.tiles(size))
    assert len(set(tiles)) == len(tiles)
    assert all(tile.row % size == tile.col % size == 0 for tile in tiles)
    parts = [tile.intersection(window) for tile in tiles]
    assert None not in parts, "a tile that does not touch the window is no tile of it"
    assert sum(p.height * p.width for p in parts if p) == window.height * window.width


@given(windows, sizes)
def test_a_snapped_window_is_the_smallest_aligned_one_around(window: Window, size: int) -> None:
    snapped = window.snapped(size)
    assert snapped.is_aligned(size)
    assert snapped.intersection(window) == window
    assert snapped.height < window.height + 2 * size
    assert 0 <= window.row - snapped.row < size
    assert 0 <= snapped.stop_col - window.stop_col < size


@given(windows, st.integers(0, 300))
def test_slices_find_a_core_inside_its_halo(window: Window, halo: int) -> None:
    rows, cols = window.slices(within=window.buffered(halo))
    assert (rows.start, cols.start) == (halo, halo)
    assert (rows.stop - rows.start, cols.stop - cols.start) == window.shape


@given(corners, corners, pixel_sizes, st.integers(1, 9000), st.integers(1, 9000))
def test_a_scene_comes_back_from_its_window_where_it_was(
    x: float, y: float, dx: float, height: int, width: int
) -> None:
    transform = transform_of(x, y, dx)
    grid = PixelGrid.from_transform("EPSG:32650", transform, where="scene")
    assert 0 <= grid.x0 < dx
    assert 0 <= grid.y0 < dx
    window = grid.window(transform, (height, width), where="scene")
    back = grid.transform(window)
    assert math.isclose(back.c, x, abs_tol=1e-5 * dx)
    assert math.isclose(back.f, y, abs_tol=1e-5 * dx)
    left, bottom, right, top = grid.bounds(window)
    assert math.isclose(right - left, width * dx)
    assert math.isclose(top - bottom, height * dx)


@given(corners, corners, pixel_sizes, st.integers(-9999, 9999), st.integers(-9999, 9999))
def test_scenes_whole_pixels_apart_share_their_numbering(
    x: float, y: float, dx: float, rows: int, cols: int
) -> None:
    first = transform_of(x, y, dx)
    second = transform_of(x + cols * dx, y - rows * dx, dx)
    grid = PixelGrid.from_transform("EPSG:32650", first, where="first")
    a = grid.window(first, (5, 7), where="first")
    b = grid.window(second, (5, 7), where="second")
    assert (b.row - a.row, b.col - a.col) == (rows, cols)


@given(corners, corners, pixel_sizes, windows, st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_a_point_belongs_to_the_pixel_whose_corners_surround_it(
    x: float, y: float, dx: float, window: Window, right: float, down: float
) -> None:
    grid = PixelGrid.from_transform("EPSG:32650", transform_of(x, y, dx), where="scene")
    left, _, _, top = grid.bounds(window)
    assert grid.pixel_of(left + right * dx, top - down * dx) == (window.row, window.col)


@pytest.mark.parametrize(
    "transform",
    [
        Affine(3, 0.1, 0, 0, -3, 0),
        Affine(3, 0, 0, 0.1, -3, 0),
        Affine(3, 0, 0, 0, 3, 0),
        Affine(-3, 0, 0, 0, -3, 0),
    ],
    ids=["sheared", "rotated", "south-up", "mirrored"],
)
def test_only_north_up_rasters_have_a_grid(transform: Affine) -> None:
    with pytest.raises(RasterError, match=r"scene\.tif: .*not north-up.*gdalwarp"):
        PixelGrid.from_transform("EPSG:32650", transform, where="scene.tif")


@pytest.mark.parametrize(
    ("x", "dx"), [(1.5, 3.0), (0.1, 3.0), (0.0, 3.001)], ids=["half", "a thirtieth", "larger"]
)
def test_a_scene_between_the_pixels_of_the_others_is_refused(x: float, dx: float) -> None:
    grid = PixelGrid.from_transform("EPSG:32650", transform_of(0, 0, 3.0), where="first")
    with pytest.raises(RasterError, match=r"second\.tif: .*grid of the other scenes.*warp it"):
        grid.window(transform_of(x, 0, dx), (5, 5), where="second.tif")


def test_a_zone_is_named_by_its_epsg_code() -> None:
    assert zone_name("EPSG:32650") == zone_name("epsg:32650") == "epsg32650"
    with pytest.raises(RasterError, match=r"no EPSG code.*imagery\.crs"):
        zone_name('PROJCS["unnamed"]')
