"""DESIGN.md's invariants 1 to 4, on whole maps: killed processes, a real network, a real store."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from terrafine.export import ServedModel
from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import (
    MapOutcome,
    MapStore,
    OnnxPredictor,
    ShardJob,
    TorchPredictor,
    map_all,
    open_map,
)
from terrafine.spec import EnhanceSpec
from tests.exported import Exported
from tests.imagery import ArrayImagery, small_spec, two_scenes
from tests.integration.map_in_pieces import map_scene

ROOT = Path(__file__).parents[2]
ARRAYS = ("landcover", "confidence", "source")
WAVE = small_spec().wave


def arrays(path: Path, ref: str) -> dict[str, np.ndarray]:
    reader = open_map(path)
    (zone,) = reader.zones()
    return {name: reader.read(zone, reader.window(zone), name, ref=ref) for name in ARRAYS}


def assert_same_bytes(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in ARRAYS:
        assert one[name].tobytes() == other[name].tobytes(), name


def computed(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def start(store: Path, log: Path, die_after: int) -> subprocess.Popen[bytes]:
    script = [sys.executable, "-m", "tests.integration.map_in_pieces"]
    return subprocess.Popen([*script, str(store), str(log), str(die_after)], cwd=ROOT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    outcome = map_scene(folder / "map", folder / "log")
    return arrays(folder / "map", outcome.run)


@pytest.mark.parametrize(
    ("die_after", "committed"),
    [
        pytest.param(WAVE, WAVE, id="just after a commit"),
        pytest.param(WAVE + 2, WAVE, id="in the middle of the second wave"),
        pytest.param(1, 0, id="before anything was committed"),
    ],
)
def test_a_killed_run_shows_its_commits_and_resumes_to_the_same_bytes(
    tmp_path, uninterrupted, die_after, committed
):
    store, log = tmp_path / "map", tmp_path / "log"
    assert start(store, log, die_after).wait(timeout=120) == -signal.SIGKILL
    assert len(computed(log)) == die_after

    reader = MapStore(store)
    (run,) = reader.runs()
    done = {window for _, window in reader.done(run)}
    assert len(done) == committed
    before = arrays(store, run)
    written = before["landcover"] != 255
    assert written.sum() == committed * 64 * 64, "what was not committed never reads as a class"
    for name in ARRAYS:
        assert np.array_equal(before[name][written], uninterrupted[name][written])
    assert (arrays(store, "main")["landcover"] == 255).all()

    outcome = map_scene(store, log)
    assert outcome.resumed == committed
    assert outcome.computed == outcome.shards - committed
    again = computed(log)[die_after:]
    assert not {f"{w.row} {w.col}" for w in done} & set(again), "done shards are not recomputed"
    assert_same_bytes(arrays(store, outcome.run), uninterrupted)
    MapStore(store).release("v1", outcome.run)


def test_killed_again_and_again_at_any_moment_it_still_ends_in_the_same_bytes(
    tmp_path, uninterrupted
):
    store, log = tmp_path / "map", tmp_path / "log"
    moments = random.Random(7)
    for _ in range(3):
        process = start(store, log, 0)
        before = len(computed(log))
        while process.poll() is None and len(computed(log)) < before + 2:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.08))
        process.kill()
        process.wait(timeout=60)
    assert computed(log), "it was killed at work"
    outcome = map_scene(store, log)
    assert_same_bytes(arrays(store, outcome.run), uninterrupted)


def scene_with_a_hole() -> ArrayImagery:
    """150 x 170 pixels off every line of the grid, two scenes, missing pixels inside."""
    whole = two_scenes(row=-309, col=71, seed=4)
    (upper, image), (lower, other) = whole.images
    return ArrayImagery(
        [
            (Window(upper.row, upper.col, 120, 130), image[:, :120, :130]),
            (Window(lower.row, lower.col - 60, 60, 100), other[:, :60, :100]),
        ]
    )


def map_with(
    path: Path, predictor: OnnxPredictor, *, shard: int, backwards: bool = False
) -> MapOutcome:
    spec = small_spec(halo=16, shard=shard, enhance=EnhanceSpec(block=32, threshold=90))

    def runner(shards, write):
        yield from map(write, shards[::-1] if backwards else shards)

    imagery = scene_with_a_hole()
    return map_all(
        path,
        {imagery.zone: imagery},
        lambda: predictor,
        spec=spec,
        legend=SEVEN,
        scenes=("upper", "lower"),
        model_digest=(getattr(predictor, "info", None) and predictor.info.model) or "torch",
        spec_digest="s",
        run=runner,
    )


def seen(path: Path, ref: str) -> dict[str, np.ndarray]:
    """The arrays where a scene has a valid pixel, and only there."""
    reader, imagery = open_map(path), scene_with_a_hole()
    _, source = imagery.read(imagery.window)
    return {
        name: np.where(source > 0, reader.read(imagery.zone, imagery.window, name, ref=ref), 0)
        for name in ARRAYS
    }


def test_a_real_network_gives_the_same_map_as_one_shard_and_as_many_in_any_order(
    tmp_path, exported_hrnet: Exported
):
    predictor = OnnxPredictor(exported_hrnet.graph, threads=2)
    one = map_with(tmp_path / "one", predictor, shard=512)
    many = map_with(tmp_path / "many", OnnxPredictor(exported_hrnet.graph, threads=1), shard=64)
    back = map_with(tmp_path / "back", predictor, shard=64, backwards=True)
    assert one.shards < many.shards == back.shards > 6
    first = seen(tmp_path / "one", one.run)
    assert_same_bytes(first, seen(tmp_path / "many", many.run))
    assert_same_bytes(arrays(tmp_path / "many", many.run), arrays(tmp_path / "back", back.run))
    assert len(np.unique(first["landcover"])) >= 6, "a map with something in it"
    assert set(np.unique(first["source"])) == {0, 1, 2}


def test_the_map_is_what_the_network_says(tmp_path, exported_hrnet: Exported):
    """Raw numbers in, classes out: through the graph or in torch, the same map."""
    served = ServedModel(exported_hrnet.model, SEVEN)
    spec = small_spec(halo=16, enhance=EnhanceSpec(enabled=False, block=32))
    shard = Window(-256, 64, 64, 64)
    one = ShardJob(scene_with_a_hole(), OnnxPredictor(exported_hrnet.graph), spec, SEVEN)(shard)
    other = ShardJob(scene_with_a_hole(), TorchPredictor(served, window=64), spec, SEVEN)(shard)
    assert (one.landcover == other.landcover).mean() > 0.995
    assert np.array_equal(one.source, other.source)
    assert np.array_equal(one.landcover == 0, one.source == 0)
