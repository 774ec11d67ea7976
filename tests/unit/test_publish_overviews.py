"""Mode overviews: the commonest class of the ground below, and no class that is not there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from terrafine.geometry import Window
from terrafine.legend import UInt8Array
from terrafine.mapping import MapStore
from terrafine.publish import (
    mode_downsample,
    overview_factors,
    overview_shape,
    write_overviews,
)
from tests.map_stores import Watched, random_map, release_maps, write_run

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


ZONE = "epsg32650"


def stored(store: MapStore, ref: str) -> dict[int, UInt8Array]:
    return {factor: store.overview(ZONE, factor, ref)[0] for factor in store.overviews(ZONE, ref)}


def halved(codes_HW: UInt8Array) -> dict[int, UInt8Array]:
    expected = {}
    for factor in overview_factors(codes_HW.shape):
        codes_HW = expected[factor] = mode_downsample(codes_HW)
    return expected


def assert_equal(found: dict[int, UInt8Array], expected: dict[int, UInt8Array]) -> None:
    assert found.keys() == expected.keys()
    for factor, codes_HW in found.items():
        np.testing.assert_array_equal(codes_HW, expected[factor], err_msg=str(factor))


@pytest.mark.parametrize(
    ("window", "shard", "by_shard"),
    [
        (Window(-768, 1280, 1024, 2048), 256, 2),
        (Window(-1024, 5120, 2048, 3072), 1024, 2),
        (Window(-1024, 5120, 2048, 3072), 1024, 64),
    ],
)
def test_overviews_made_shard_by_shard_are_those_of_the_whole_map(
    tmp_path: Path, window: Window, shard: int, by_shard: int
) -> None:
    """Squares of whole chunks, off the global grid's, with a shard that was never mapped; small
    shards that share a chunk and large ones that fill several."""
    codes_HW = random_map(0, window.shape)
    codes_HW[-1024:, 1024:2048] = 255
    store = release_maps(tmp_path / "map", "v1", {ZONE: (window, codes_HW)}, shard=shard)
    (run,) = store.runs()
    write_overviews(store, run, workers=3, by_shard=by_shard)
    assert_equal(stored(store, run), halved(codes_HW))
    tip = store.snapshot(run)
    write_overviews(store, run, workers=3, by_shard=by_shard)
    assert store.snapshot(run) == tip, "made again"


def test_only_what_was_mapped_since_is_read_again(tmp_path: Path) -> None:
    window = Window(0, 0, 512, 1024)
    codes_HW = random_map(1, window.shape)
    codes_HW[256:, 512:] = 255
    store = release_maps(tmp_path / "map", "v1", {ZONE: (window, codes_HW)}, shard=256)
    (run,) = store.runs()
    write_overviews(store, run)
    codes_HW[256:, 512:] = random_map(2, (256, 512))
    write_run(store.path, "v1", {ZONE: (window, codes_HW)}, shard=256)
    reader = Watched(store.path)
    write_overviews(reader, run)
    assert set(reader.seen) == {Window(256, 512, 256, 256), Window(256, 768, 256, 256)}
    assert_equal(stored(store, run), halved(codes_HW))


def test_small_arrays_have_no_overview(tmp_path: Path) -> None:
    store = release_maps(
        tmp_path / "map", "v1", {ZONE: (Window(0, 0, 256, 256), random_map(1, (256, 256)))}
    )
    write_overviews(store, store.runs()[0])
    assert store.overviews(ZONE) == ()
