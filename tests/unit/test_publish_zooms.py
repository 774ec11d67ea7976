"""Zooms: the places of most disagreement, none overlapping another."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from terrafine.geometry import Window
from terrafine.legend import UInt8Array
from terrafine.publish.zooms import differing, most_different

# fill=st.nothing(): every pixel is drawn, or most maps would be one class and never differ
maps = arrays(np.uint8, (14, 11), elements=st.sampled_from([0, 1, 2, 255]), fill=st.nothing())


@settings(max_examples=80, deadline=None)
@given(map_HW=maps, product_HW=maps, size=st.one_of(st.integers(2, 6), st.just(20)))
def test_each_zoom_has_the_most_disagreement_that_is_left(
    map_HW: UInt8Array, product_HW: UInt8Array, size: int
) -> None:
    window = Window(100, -50, 14, 11)
    different = differing(map_HW, product_HW)
    zooms = most_different(map_HW, product_HW, window=window, size=size, count=3)

    taken: list[Window] = []
    for zoom in zooms:
        assert zoom.window.intersection(window) == zoom.window
        assert all(zoom.window.intersection(other) is None for other in taken)
        height, width = zoom.window.shape
        places = [
            Window(100 + row, -50 + col, height, width)
            for row, col in itertools.product(range(14 - height + 1), range(11 - width + 1))
        ]
        left = [
            different[place.slices(window)].sum()
            for place in places
            if all(place.intersection(other) is None for other in taken)
        ]
        found = different[zoom.window.slices(window)].sum()
        assert found == max(left) > 0
        assert zoom.differing == found / (height * width)
        taken.append(zoom.window)


def test_pixels_without_a_class_do_not_differ() -> None:
    map_HW = np.array([[0, 255, 1, 1, 2]], np.uint8)
    product_HW = np.array([[1, 1, 0, 255, 1]], np.uint8)

    assert differing(map_HW, product_HW).tolist() == [[False, False, False, False, True]]


def test_equal_maps_have_no_zooms() -> None:
    same = np.ones((30, 30), np.uint8)

    assert most_different(same, same, window=Window(0, 0, 30, 30), size=8, count=4) == ()


def test_zooms_of_a_decimated_map_are_in_full_pixel_numbers() -> None:
    map_HW, product_HW = np.ones((25, 25), np.uint8), np.ones((25, 25), np.uint8)
    map_HW[20:24, 4:8] = 2

    (zoom,) = most_different(
        map_HW, product_HW, window=Window(1000, 2000, 100, 100), size=16, count=2, step=4
    )

    assert zoom.window == Window(1080, 2016, 16, 16)
    assert zoom.differing == 1.0
