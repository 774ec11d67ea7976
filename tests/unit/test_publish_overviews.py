"""Mode overviews: the commonest class of the ground below, and no class that is not there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from terrafine.geometry import Window
from terrafine.legend import UInt8Array
from terrafine.publish.overviews import (
    mode_downsample,
    overview_factors,
    overview_pyramid,
    overview_shape,
)

# few codes, so that ties and pixels without a class are common
codes = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=13),
    elements=st.sampled_from([0, 1, 2, 3, 254, 255]),
)


def expected(block: UInt8Array) -> int:
    """The rule in plain words, pixel by pixel."""
    counts = Counter(int(code) for code in block.ravel())
    classes = {code: n for code, n in counts.items() if code not in (0, 255)}
    if classes:
        return min(classes, key=lambda code: (-classes[code], code))
    return 0 if counts[0] else 255


@settings(max_examples=150, deadline=None)
@given(codes_HW=codes, factor=st.integers(1, 5))
def test_every_overview_pixel_is_the_commonest_class_of_its_block(
    codes_HW: UInt8Array, factor: int
) -> None:
    overview = mode_downsample(codes_HW, factor)

    assert overview.shape == overview_shape(codes_HW.shape, factor)
    for row, col in np.ndindex(overview.shape):
        block = codes_HW[row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
        assert overview[row, col] == expected(block)


@settings(max_examples=60, deadline=None)
@given(codes_HW=codes)
def test_no_class_is_invented_and_none_lost_to_nodata(codes_HW: UInt8Array) -> None:
    overview = mode_downsample(codes_HW)

    assert set(overview.ravel().tolist()) <= set(codes_HW.ravel().tolist())
    for row, col in np.argwhere((codes_HW != 0) & (codes_HW != 255)):
        assert overview[row // 2, col // 2] not in (0, 255)


def test_ties_go_to_the_smaller_code_and_nodata_wins_only_alone() -> None:
    codes_HW = np.array([[2, 2, 255, 255, 0, 255], [1, 1, 0, 7, 255, 255]], np.uint8)

    assert mode_downsample(codes_HW).tolist() == [[1, 7, 0]]


def test_factors_stop_at_the_first_overview_that_fits_a_screen() -> None:
    assert overview_factors((256, 200)) == []
    assert overview_factors((257, 10)) == [2]
    assert overview_factors((10, 5000)) == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("shape", [(70, 33), (64, 64), (9, 130), (17, 17)])
def test_pyramid_by_tiles_equals_repeated_halving_and_reads_each_pixel_once(
    shape: tuple[int, int],
) -> None:
    base = np.random.default_rng(3).choice(np.array([0, 1, 2, 5, 255], np.uint8), shape)
    reads = np.zeros(shape, int)

    def read(window: Window) -> UInt8Array:
        place = window.slices(Window(0, 0, *shape))
        assert base[place].shape == window.shape, "read beyond the array"
        assert max(window.shape) <= 16, "more than a tile in memory"
        reads[place] += 1
        return base[place]

    written: dict[int, UInt8Array] = {}
    for tile in overview_pyramid(read, shape, tile=16, smallest=8):
        whole = overview_shape(shape, tile.factor)
        target = written.setdefault(tile.factor, np.full(whole, 99, np.uint8))
        place = tile.window.slices(Window(0, 0, *whole))
        assert tile.window.row % 16 == tile.window.col % 16 == 0
        assert (target[place] == 99).all(), "a tile was handed out twice"
        target[place] = tile.codes_HW

    assert sorted(written) == overview_factors(shape, smallest=8)
    assert (reads == 1).all()
    below = base
    for factor in sorted(written):
        below = mode_downsample(below)
        np.testing.assert_array_equal(written[factor], below)


def test_small_arrays_have_no_overview() -> None:
    assert list(overview_pyramid(lambda window: pytest.fail("read"), (200, 256))) == []


def test_an_odd_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        list(overview_pyramid(lambda window: np.zeros(window.shape, np.uint8), (900, 900), tile=5))
