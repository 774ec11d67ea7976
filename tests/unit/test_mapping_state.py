"""What a map store says of its runs, and what a second look at a map finds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from prometheus_client import CollectorRegistry

from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import (
    MapStore,
    MapWatch,
    ShardJob,
    ShardResult,
    in_sequence,
    map_all,
    run_states,
    verify_sample,
)
from terrafine.telemetry import MappingMetrics
from tests.buckets import s3_bucket
from tests.imagery import ArrayImagery, QuickPredictor, small_spec, two_scenes


def mapped(place, *, run=in_sequence, observer=None, imagery=None):
    imagery, spec = imagery or two_scenes(), small_spec()
    return map_all(
        place,
        {imagery.zone: imagery},
        lambda: QuickPredictor(spec.window),
        spec=spec,
        legend=SEVEN,
        scenes=("upper", "lower"),
        model_digest="m",
        spec_digest="s",
        run=run,
        observer=observer,
    )


def again(key: tuple[str, Window]) -> ShardResult:
    spec = small_spec()
    return ShardJob(two_scenes(), QuickPredictor(spec.window), spec, SEVEN)(key[1])


def test_a_running_map_tells_how_far_it_is(tmp_path: Path) -> None:
    seen = []

    def watched(shards, write):
        for receipt in in_sequence(shards, write):
            yield receipt
            seen.append(run_states(MapStore(tmp_path / "map"))[0].done)

    outcome = mapped(tmp_path / "map", run=watched)
    assert seen[:4] == [0, 0, 3, 3], "commits are seen, waves under way are not"
    (state,) = run_states(MapStore(tmp_path / "map"))
    assert (state.run, state.planned, state.done) == (outcome.run, outcome.shards, outcome.shards)
    assert (state.mapped, state.explained) == (outcome.mapped, outcome.explained)
    assert state.mapped + state.explained == outcome.shards * 64**2
    assert state.releases == ()
    MapStore(tmp_path / "map").release("v1", outcome.run)
    assert run_states(MapStore(tmp_path / "map"))[0].releases == ("v1",)


def test_scenes_that_could_not_be_read_are_remembered_by_the_store(tmp_path: Path) -> None:
    imagery = two_scenes()
    partly = ArrayImagery(imagery.images, unreadable={"lower": "lower.tif: truncated"})
    outcome = mapped(tmp_path / "map", imagery=partly)
    assert outcome.unreadable == {"lower": "lower.tif: truncated"}
    (state,) = run_states(MapStore(tmp_path / "map"))
    assert state.unreadable == {"lower": "lower.tif: truncated"}


def test_a_second_look_finds_the_same_bytes_and_every_changed_one(tmp_path: Path) -> None:
    outcome = mapped(tmp_path / "map")
    store = MapStore(tmp_path / "map")
    looked = list(verify_sample(store, outcome.run, again, shards=5, seed=1))
    assert len({(v.row, v.col) for v in looked}) == 5
    assert not any(v.differs or v.damaged for v in looked)

    shard = looked[0]
    session = store._repository.writable_session(outcome.run)
    array = zarr.open_group(session.store, path=shard.zone, mode="r+")["confidence"]
    extent = store.window(shard.zone)
    array[shard.row - extent.row, shard.col - extent.col] ^= 1
    session.commit("a bit was flipped")
    found = {
        (v.row, v.col): v
        for v in verify_sample(MapStore(store.path), outcome.run, again, shards=100, seed=0)
    }
    assert len(found) == outcome.shards
    wrong = found.pop((shard.row, shard.col))
    assert (wrong.differs, wrong.damaged) == (("confidence",), ("confidence",))
    assert not any(v.differs or v.damaged for v in found.values())


def test_what_dropped_receipts_left_is_collected_but_never_during_a_run(tmp_path: Path) -> None:
    def twice(shards, write):
        for key in shards:
            write(key)
            yield write(key)
            with pytest.raises(MapStoreError, match="another process is writing"):
                MapStore(tmp_path / "map").collect()

    outcome = mapped(tmp_path / "map", run=twice)
    store = MapStore(tmp_path / "map")
    before = store.read("epsg32650", store.window("epsg32650"), ref=outcome.run)
    assert store.collect() > 0
    after = MapStore(store.path).read("epsg32650", store.window("epsg32650"), ref=outcome.run)
    assert np.array_equal(before, after)
    assert store.collect() == 0


def test_metrics_count_shards_pixels_and_the_time_of_every_step(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with MapWatch(MappingMetrics(wave=3, registry=registry)) as watch:
        outcome = mapped(tmp_path / "map", observer=watch)

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"terrafine_mapping_{name}", labels) or 0.0

    assert value("shards_planned") == value("shards_done") == outcome.shards
    assert value("pixels_per_second") > 0
    assert value("seconds_left") == 0
    assert value("pixels_total", kind="mapped") == outcome.mapped
    assert value("pixels_total", kind="without data") == outcome.explained
    for step in ("read", "infer", "enhance", "write"):
        assert value("worker_seconds_total", step=step) > 0, step
    assert value("commit_seconds_count") == -(-outcome.shards // small_spec().wave)


@pytest.fixture
def bucket():
    with s3_bucket() as url:
        yield url


def test_a_map_in_a_bucket_is_the_same_as_on_disk(tmp_path: Path, bucket: str) -> None:
    outcome, there = mapped(tmp_path / "map"), mapped(f"{bucket}/maps/one")
    local, remote = MapStore(tmp_path / "map"), MapStore(f"{bucket}/maps/one")
    for name in ("landcover", "confidence", "source"):
        window = local.window("epsg32650")
        assert np.array_equal(
            local.read("epsg32650", window, name, outcome.run),
            remote.read("epsg32650", window, name, there.run),
        )
    assert local.accounts(outcome.run) == remote.accounts(there.run)
    assert mapped(f"{bucket}/maps/one").computed == 0, "it is resumed there"


def test_of_two_runs_in_a_bucket_one_ends_and_nothing_is_lost(bucket: str) -> None:
    """A bucket has no locks: who finds the other's commit on its branch stops."""
    place = f"{bucket}/maps/two"

    def other_meanwhile(shards, write):
        for number, receipt in enumerate(in_sequence(shards, write)):
            yield receipt
            if number == 3:
                mapped(place)

    with pytest.raises(MapStoreError, match="another process has committed to run-"):
        mapped(place, run=other_meanwhile)
    (state,) = run_states(MapStore(place))
    assert state.done == state.planned
    looked = verify_sample(MapStore(place), state.run, again, shards=100, seed=0)
    assert not any(v.differs or v.damaged for v in looked)


@pytest.mark.parametrize("place", ["gs://bucket/map", "s3://", "ftp://host/map"])
def test_a_url_that_is_no_place_for_a_store_is_one_sentence(place: str) -> None:
    with pytest.raises(MapStoreError, match=f"{place}: no place for a map store"):
        mapped(place)


@pytest.mark.slow  # it is asked again for a while
def test_a_bucket_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(MapStoreError, match="s3://nowhere/map: the map store cannot be reached"):
        mapped("s3://nowhere/map")
