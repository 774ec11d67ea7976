"""Receipts on their way into commits: what a second one may say, and how long one waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapRun, MapStore, Plan, ShardReceipt, ShardResult, open_map
from terrafine.mapping import run as map_run
from tests.imagery import GRID, map_two_scenes, small_spec

ZONE, EXTENT = "epsg32650", Window(0, 0, 64, 128)
HERE, THERE = EXTENT.tiles(64)
LOST = {"north": "north.tif: cut off"}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[MapRun]:
    plan = Plan(ZONE, GRID, EXTENT, 64, (HERE, THERE))
    store = MapStore.create(tmp_path / "map", [plan], SEVEN)
    with store.run([plan], model="m", spec="s", scenes=("north", "south"), mapping={}) as started:
        yield started


def receipt(run: MapRun, shard: Window, *, scene: int, code: int = 1) -> ShardReceipt:
    """A shard that a worker has written: all of one scene and one class."""
    filled = [np.full(shard.shape, code, np.uint8), np.full(shard.shape, 50, np.uint8)]
    source = np.full(shard.shape, scene, np.uint16)
    return run.target.write(ZONE, ShardResult(shard, *filled, source))


def test_a_scene_that_one_worker_could_not_read_excuses_another_result_where_it_lies(run) -> None:
    assert run.accept(receipt(run, HERE, scene=1))
    below = replace(receipt(run, HERE, scene=2, code=3), unreadable=LOST)
    assert not run.accept(below), "the first one counts"
    run.commit()
    assert not run.accept(below), "once it is committed, too"


def test_a_scene_that_cannot_be_read_elsewhere_excuses_no_other_result(run) -> None:
    run.accept(replace(receipt(run, HERE, scene=2), unreadable=LOST))
    run.accept(receipt(run, THERE, scene=2))
    with pytest.raises(MapStoreError, match="column 64: computed twice with different results"):
        run.accept(receipt(run, THERE, scene=2, code=3))


def committed_while_mapping(path: Path) -> list[int]:
    """How many shards can be read each time one more is written."""
    seen = []

    def watched(shards, write):
        for shard in shards:
            yield write(shard)
            reader = open_map(path)
            codes = reader.read(ZONE, reader.window(ZONE), ref=reader.runs()[0])
            seen.append(int((codes != 255).sum()) // 64**2)

    map_two_scenes(path, run=watched, spec=small_spec(wave=1000))
    return seen


def test_shards_that_come_in_slowly_do_not_wait_for_a_wave_to_fill(tmp_path, monkeypatch) -> None:
    assert set(committed_while_mapping(tmp_path / "quick")) == {0}
    monkeypatch.setattr(map_run, "_LONGEST_WAIT", 0.0)
    seen = committed_while_mapping(tmp_path / "slow")
    assert seen == list(range(1, len(seen) + 1))
