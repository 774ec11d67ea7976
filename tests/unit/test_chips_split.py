"""The split: whole blocks, a function of the seed, and no pixel on both sides."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafine.chips.split import OVERLAP, TRAIN, VALIDATION, split_blocks, split_chips
from terrafine.errors import ChipStoreError

Blocks = list[tuple[str, int, int]]


def square(side: int, block: int, zone: str = "epsg32650") -> Blocks:
    """Blocks of the chips of a square scene, row by row."""
    return [(zone, row // block, col // block) for row in range(side) for col in range(side)]


def one_class(count: int) -> np.ndarray:
    return np.ones((count, 1), bool)


@settings(max_examples=40)
@given(
    side=st.integers(4, 12),
    block=st.integers(1, 4),
    fraction=st.floats(0.02, 0.6),
    seed=st.integers(0, 1000),
)
def test_blocks_stay_whole_until_the_fraction_is_reached(
    side: int, block: int, fraction: float, seed: int
) -> None:
    blocks = square(side, block)
    if len(set(blocks)) < 2:
        return
    held = split_blocks(blocks, one_class(side**2), fraction=fraction, seed=seed)
    parts = {b: {bool(h) for h, c in zip(held, blocks, strict=True) if c == b} for b in blocks}
    assert all(len(found) == 1 for found in parts.values()), "a block lies on both sides"
    assert 0 < held.sum() < len(blocks)
    assert held.sum() >= fraction * len(blocks) or len(set(blocks)) - 1 == sum(
        found == {True} for found in parts.values()
    )
    assert held.sum() < fraction * len(blocks) + block**2


def test_the_seed_decides() -> None:
    blocks, classes = square(10, 2), one_class(100)
    first = split_blocks(blocks, classes, fraction=0.2, seed=1)
    assert (first == split_blocks(blocks, classes, fraction=0.2, seed=1)).all()
    others = [split_blocks(blocks, classes, fraction=0.2, seed=seed) for seed in range(2, 6)]
    assert any((first != other).any() for other in others)


def test_every_class_is_on_both_sides_where_that_can_be() -> None:
    blocks = square(8, 1)
    classes_NK = np.zeros((64, 4), bool)
    classes_NK[:, 0] = True
    for k, chips in ((1, (3, 40)), (2, (17, 60)), (3, (9, 31))):
        classes_NK[list(chips), k] = True
    found = 0
    for seed in range(10):
        held = split_blocks(blocks, classes_NK, fraction=0.2, seed=seed)
        assert 13 <= held.sum() <= 14
        found += bool(classes_NK[held].any(axis=0).all() and classes_NK[~held].any(axis=0).all())
    # one shuffle alone would do it in about one of thirty
    assert found >= 7


def test_one_block_cannot_be_split() -> None:
    with pytest.raises(ChipStoreError, match=r"all 16 chips lie in 1 block.*smaller chips\.block"):
        split_blocks(square(4, 4), one_class(16), fraction=0.2, seed=0)


def boxes(x: float, count: int) -> list[shapely.Polygon]:
    return [shapely.box(x + i, 0, x + i + 1, 1) for i in range(count)]


def test_a_training_chip_under_a_validation_chip_of_another_zone_is_left_out() -> None:
    footprints = geopandas.GeoSeries(boxes(0, 6) + boxes(2.5, 6), crs="EPSG:4326")
    blocks = [("epsg32649", 0, i) for i in range(6)] + [("epsg32650", 0, i) for i in range(6)]
    for seed in range(8):
        parts = split_chips(footprints, blocks, one_class(12), fraction=0.3, seed=seed)
        held = split_blocks(blocks, one_class(12), fraction=0.3, seed=seed)
        assert [part == VALIDATION for part in parts] == held.tolist()
        for i in range(12):
            shared = [
                footprints[i].intersection(footprints[j]).area > 0
                for j in range(12)
                if held[j] and blocks[j][0] != blocks[i][0]
            ]
            if not held[i]:
                assert parts[i] == (OVERLAP if any(shared) else TRAIN)


def test_neighbours_of_one_zone_only_touch() -> None:
    footprints = geopandas.GeoSeries(boxes(0, 6), crs="EPSG:4326")
    blocks = [("epsg32649", 0, i) for i in range(6)]
    assert OVERLAP not in split_chips(footprints, blocks, one_class(6), fraction=0.3, seed=0)


def test_a_split_needs_something_to_train_on() -> None:
    footprints = geopandas.GeoSeries(boxes(0, 1) * 2, crs="EPSG:4326")
    blocks = [("epsg32649", 0, 0), ("epsg32650", 0, 0)]
    with pytest.raises(ChipStoreError, match="every training chip overlaps"):
        split_chips(footprints, blocks, one_class(2), fraction=0.3, seed=0)
