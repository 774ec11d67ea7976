from __future__ import annotations

import numpy as np
import pytest

from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.mapping import Plan
from terrafine.mapping.plan import require_shard
from tests.imagery import ArrayImagery, small_spec, two_scenes

EXTENT = Window(-128, 64, 256, 320)


def test_the_extent_is_the_imagery_grown_to_whole_shards():
    imagery = two_scenes()
    plan = Plan.of(imagery, small_spec())
    assert plan.extent.is_aligned(64)
    assert plan.extent.intersection(imagery.window) == imagery.window
    assert plan.extent == imagery.window.snapped(64)


def test_only_shards_that_touch_a_scene_are_mapped():
    one = np.ones((4, 10, 10), np.uint16)
    far = ArrayImagery([(Window(60, 0, 10, 10), one), (Window(300, 500, 10, 10), one)])
    assert Plan.of(far, small_spec()).shards() == [
        Window(0, 0, 64, 64),
        Window(64, 0, 64, 64),
        Window(256, 448, 64, 64),
    ]


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (Window(0, 64, 64, 63), "not one whole shard"),
        (Window(0, 64, 32, 32), "not one whole shard"),
        (Window(0, 64, 128, 64), "not one whole shard"),
        (Window(8, 64, 64, 64), "not one whole shard"),
        (Window(128, 64, 64, 64), "outside the map"),
        (Window(0, 0, 64, 64), "outside the map"),
    ],
)
def test_a_region_that_is_not_one_whole_shard_is_refused(window, reason):
    with pytest.raises(MapStoreError, match=f"zone x.*{reason}.*nothing was written"):
        require_shard(window, extent=EXTENT, shard=64, where="zone x")


def test_every_shard_of_the_extent_is_accepted():
    for shard in EXTENT.tiles(64):
        require_shard(shard, extent=EXTENT, shard=64, where="zone x")
