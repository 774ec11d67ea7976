"""Maps made on a real Ray: the same bytes, whoever dies meanwhile."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from affine import Affine

from serving.mapper.runner import RayShardRunner
from serving.ray_cluster import connected
from serving.triton.client import TritonPredictor
from serving.triton.server import TritonServer
from terrafine.errors import MapStoreError, ModelError, RasterError
from terrafine.export import Release
from terrafine.legend import SEVEN
from terrafine.mapping import (
    MapOutcome,
    MapStore,
    OnnxPredictor,
    Prediction,
    ShardReceipt,
    ShardRunner,
    in_sequence,
    map_all,
    open_map,
    run_states,
)
from terrafine.raster import Mosaic, open_mosaics
from terrafine.spec import ImagerySpec
from terrafine.telemetry import RequestRecord
from tests.disks import small_disk
from tests.imagery import QuickPredictor, small_spec, two_scenes
from tests.processes import command, family
from tests.scenes import TRANSFORM, write_raster
from tests.triton import serve_release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
ARRAYS = ("landcover", "confidence", "source")


@dataclass
class SlowPredictor(QuickPredictor):
    """Slow enough to be killed at work; leaves the id of its process in ``log``."""

    log: Path | None = None
    pause: float = 0.0

    def predict(self, windows_NCHW: np.ndarray) -> Prediction:
        assert self.log is not None
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.pause)
        return super().predict(windows_NCHW)


def mapped(
    folder: Path,
    run: ShardRunner,
    *,
    name: str = "map",
    pause: float = 0.0,
    model: type[SlowPredictor] = SlowPredictor,
    **spec: object,
) -> MapOutcome:
    cut = small_spec(**spec)
    imagery = two_scenes()
    return map_all(
        folder / name,
        {imagery.zone: imagery},
        partial(model, cut.window, log=folder / "processes", pause=pause),
        spec=cut,
        legend=SEVEN,
        scenes=("upper", "lower"),
        model_digest="m",
        spec_digest="s",
        run=run,
    )


def arrays(path: Path, ref: str | None = None) -> dict[str, np.ndarray]:
    """The arrays over the scenes' window, which all shard sizes share."""
    reader, imagery = open_map(path), two_scenes()
    (zone,) = reader.zones()
    _, source = imagery.read(imagery.window)
    ref = ref or reader.runs()[0]
    return {
        name: np.where(source > 0, reader.read(zone, imagery.window, name, ref=ref), 0)
        for name in ARRAYS
    }


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in ARRAYS:
        assert np.array_equal(one[name], other[name]), name


def processes(folder: Path) -> set[int]:
    """Those that have inferred."""
    log = folder / "processes"
    return {int(line) for line in log.read_text().split()} if log.exists() else set()


def wait_for(true, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("undisturbed")
    mapped(folder, in_sequence)
    return arrays(folder / "map")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(cpus=3):
        yield


@pytest.mark.parametrize(("workers", "shard"), [(3, 64), (2, 128)])
def test_the_map_does_not_depend_on_workers_and_shards(
    cluster: None, tmp_path: Path, undisturbed, workers: int, shard: int
) -> None:
    outcome = mapped(tmp_path, RayShardRunner(workers), pause=0.01, shard=shard)
    assert len(processes(tmp_path)) == workers
    assert os.getpid() not in processes(tmp_path)
    assert_same(arrays(tmp_path / "map"), undisturbed)
    assert outcome.mapped + outcome.explained == outcome.shards * shard**2


@dataclass
class Fleet:
    """Who is told of the workers, for the test to see."""

    most: int = 0
    lost: int = 0
    tries: dict[str, int] = field(default_factory=dict)
    requests: list[RequestRecord] = field(default_factory=list)

    def failed_tries(self, process: str, causes: Mapping[str, int]) -> None:
        self.tries[process] = sum(causes.values())

    def answered(self, records: Iterable[RequestRecord]) -> None:
        self.requests.extend(records)

    def in_flight(self, shards: int) -> None:
        self.most = max(self.most, shards)

    def lost_worker(self) -> None:
        self.lost += 1


@dataclass
class ServedPredictor(SlowPredictor):
    """A model on servers, whose second answer waits until the first was told of."""

    requests: list[RequestRecord] = field(default_factory=list)
    failed_tries: dict[str, int] = field(default_factory=dict)
    counted: tuple[()] = ()

    def predict(self, windows_NCHW: np.ndarray) -> Prediction:
        assert self.log is not None
        told = self.log.with_name("told")
        if self.asked:
            wait_for(told.exists)
        said = super().predict(windows_NCHW)
        pixels = self.window**2
        self.requests.append(
            RequestRecord("landcover", "1", False, 1, pixels, 0.1, 8 * pixels, 3 * pixels, 1)
        )
        return said

    def answered(self) -> list[RequestRecord]:
        records, self.requests = self.requests, []
        return records

    def queue_seconds(self) -> None:
        return None

    def give_up(self) -> None:
        pass


def test_what_model_servers_answered_to_workers_is_told_while_the_map_is_made(
    cluster: None, tmp_path: Path
) -> None:
    class Told(Fleet):
        def answered(self, records: Iterable[RequestRecord]) -> None:
            super().answered(records)
            if self.requests:
                (tmp_path / "told").touch()

    fleet = Told()
    outcome = mapped(tmp_path, RayShardRunner(2, observer=fleet), model=ServedPredictor)
    assert outcome.computed == outcome.shards
    asked = len((tmp_path / "processes").read_text().split())
    assert 1 <= len(fleet.requests) <= asked, "each request is told once at most"
    assert {record.windows for record in fleet.requests} == {1}


def test_a_killed_worker_is_replaced_told_of_and_costs_no_pixel(
    cluster: None, tmp_path: Path, undisturbed, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet()

    def kill_one() -> None:
        wait_for(lambda: len(processes(tmp_path)) == 2)
        os.kill(min(processes(tmp_path)), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcome = mapped(tmp_path, RayShardRunner(2, observer=fleet), pause=0.05)
    killer.join()
    assert outcome.computed == outcome.shards
    assert len(processes(tmp_path)) == 3
    assert_same(arrays(tmp_path / "map"), undisturbed)
    assert fleet.lost == 1
    assert 2 <= fleet.most <= 4, "two shards in flight per worker"
    assert "died and was started again" in caplog.text


@dataclass
class Counted(SlowPredictor):
    """Known to the process that opened it for as long as it is there."""

    opened: ClassVar[list[weakref.ref[Counted]]] = []

    def __post_init__(self) -> None:
        self.opened.append(weakref.ref(self))


def test_while_workers_map_the_driver_holds_no_model(cluster: None, tmp_path: Path) -> None:
    held = []

    def looked_at(shards, write) -> Iterator[ShardReceipt]:
        for receipt in RayShardRunner(2)(shards, write):
            gc.collect()
            held.append([model for model in Counted.opened if model() is not None])
            yield receipt

    mapped(tmp_path, looked_at, model=Counted)
    assert len(Counted.opened) == 1, "it has looked whether the model fits"
    assert not any(held)


class OutOfMemory(SlowPredictor):
    """What torch says on a GPU that others have filled."""

    def predict(self, windows_NCHW: np.ndarray) -> Prediction:
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")


def test_an_engine_that_fails_in_a_worker_ends_the_map_in_one_sentence(
    cluster: None, tmp_path: Path
) -> None:
    with pytest.raises(
        ModelError, match=r"window at row .*CUDA out of memory.*map\.workers"
    ) as bad:
        mapped(tmp_path, RayShardRunner(2), model=OutOfMemory)
    assert "\n" not in str(bad.value)


def scenes_on_disk(folder: Path, on_unreadable: str) -> Mosaic:
    """The images of :func:`two_scenes` as files, the second 120 columns right and 90 rows down."""
    for (name, step), (_, image_CHW) in zip(
        (("upper", (0, 0)), ("lower", (120, 90))), two_scenes().images, strict=True
    ):
        place = TRANSFORM @ Affine.translation(*step)
        write_raster(folder / f"{name}.tif", image_CHW, nodata=0, transform=place)
    names = [{"name": name, "files": [f"{name}.tif"]} for name in ("upper", "lower")]
    spec = ImagerySpec.model_validate({"scenes": names, "on_unreadable": on_unreadable})
    (mosaic,) = open_mosaics(spec, folder).values()
    return mosaic


def map_scenes_on_disk(folder: Path, mosaic: Mosaic, run: ShardRunner) -> MapOutcome:
    cut = small_spec()
    return map_all(
        folder / "map",
        {mosaic.zone: mosaic},
        partial(SlowPredictor, cut.window, log=folder / "processes", pause=0.01),
        spec=cut,
        legend=SEVEN,
        scenes=("upper", "lower"),
        model_digest="m",
        spec_digest="s",
        run=run,
    )


def breaking(file: Path, after: int) -> ShardRunner:
    """Two workers, and a file that is cut off in mid-run."""

    def run(shards, write) -> Iterator[ShardReceipt]:
        for number, receipt in enumerate(RayShardRunner(2)(shards, write), 1):
            if number == after:
                file.write_bytes(file.read_bytes()[:2000])
            yield receipt

    return run


def test_where_a_scene_turns_unreadable_in_mid_run_the_next_one_fills_in_and_it_is_told(
    cluster: None, tmp_path: Path
) -> None:
    mosaic = scenes_on_disk(tmp_path, "skip")
    _, before = mosaic.read(mosaic.window)
    outcome = map_scenes_on_disk(tmp_path, mosaic, breaking(tmp_path / "upper.tif", after=3))
    assert set(outcome.unreadable) == {"upper"}
    (state,) = run_states(MapStore(tmp_path / "map"))
    assert "upper.tif" in state.unreadable["upper"], "status says so too, and why"
    assert state.mapped + state.explained == state.planned * 64**2

    reader = open_map(tmp_path / "map")
    source = reader.read(mosaic.zone, mosaic.window, "source", state.run)
    landcover = reader.read(mosaic.zone, mosaic.window, ref=state.run)
    lost = (before == 1) & (source != 1)
    assert (source == 1).any(), "what was mapped before stays"
    assert (lost & (source == 2)).any(), "the scene below fills in"
    assert np.array_equal(source == 2, (before == 2) | (lost & (source == 2)))
    assert np.array_equal(landcover == 0, source == 0), "and nothing is made up"


def test_where_no_scene_may_be_missed_an_unreadable_one_stops_the_map_and_it_resumes(
    cluster: None, tmp_path: Path
) -> None:
    mosaic = scenes_on_disk(tmp_path, "fail")
    whole = (tmp_path / "upper.tif").read_bytes()
    with pytest.raises(RasterError, match=r"upper\.tif") as raised:
        map_scenes_on_disk(tmp_path, mosaic, breaking(tmp_path / "upper.tif", after=3))
    assert "\n" not in str(raised.value)
    (tmp_path / "upper.tif").write_bytes(whole)
    outcome = map_scenes_on_disk(tmp_path, mosaic, in_sequence)
    assert 0 < outcome.resumed < outcome.shards
    (tmp_path / "map").rename(tmp_path / "resumed")
    again = map_scenes_on_disk(tmp_path, mosaic, in_sequence)
    resumed, undisturbed = MapStore(tmp_path / "resumed"), MapStore(tmp_path / "map")
    assert resumed.accounts(outcome.run) == undisturbed.accounts(again.run)


def test_an_error_in_a_worker_keeps_its_sentence_and_what_was_finished(
    cluster: None, tmp_path: Path, undisturbed
) -> None:
    disk = small_disk(tmp_path / "disk", kilobytes=150)
    folder = next(disk)
    try:
        with pytest.raises(MapStoreError, match=r"No space left.*run again") as raised:
            mapped(folder, RayShardRunner(2), name="map")
        assert "\n" not in str(raised.value)
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
        outcome = mapped(folder, RayShardRunner(2), name="map")
        assert 0 < outcome.resumed < outcome.shards
        assert_same(arrays(folder / "map"), undisturbed)
    finally:
        disk.close()


def test_through_a_model_server_that_is_killed_the_map_is_the_local_one(
    cluster: None, tmp_path: Path, triton_server: TritonServer, releases: tuple[Release, Release]
) -> None:
    release, _ = releases
    serve_release(triton_server, release)
    cut, imagery = small_spec(halo=16), two_scenes()

    def map_with(name: str, predictor, run: ShardRunner, at_once: int) -> dict[str, np.ndarray]:
        map_all(
            tmp_path / name,
            {imagery.zone: imagery},
            predictor,
            spec=cut,
            legend=SEVEN,
            scenes=("upper", "lower"),
            model_digest=release.info.model,
            spec_digest="s",
            run=run,
            at_once=at_once,
        )
        return arrays(tmp_path / name)

    def kill_once(shards, write) -> Iterator[ShardReceipt]:
        for number, receipt in enumerate(RayShardRunner(2)(shards, write)):
            if number == 2:
                triton_server.restart(kill=True)
            yield receipt

    local = map_with(
        "local", partial(OnnxPredictor, release.graph("fp32"), threads=1), in_sequence, 1
    )
    served = partial(
        TritonPredictor, triton_server.grpc_url, release=release.digest, deadline=100.0
    )
    assert_same(map_with("served", served, kill_once, 3), local)
    assert len(np.unique(local["landcover"])) > 2, "a map with something in it"


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Map in a process of its own, on a Ray of its own."""
    folder.mkdir(exist_ok=True)
    settings = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.test_ray_mapping", str(folder)],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def head(driver: int) -> int:
    """The process that holds a private Ray together."""
    return next(pid for pid in family(driver) if "gcs_server" in command(pid))


def clean_up(driver: subprocess.Popen[bytes], others: set[int]) -> None:
    driver.kill()
    driver.wait()
    for pid in others:
        if command(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("victim", ["driver", "head"])
def test_killed_in_the_middle_the_map_resumes_to_the_same_bytes(
    tmp_path: Path, undisturbed, victim: str
) -> None:
    driver = start(tmp_path)
    wait_for(lambda: (tmp_path / "map").exists() and open_map(tmp_path / "map").runs(), 120)
    run = open_map(tmp_path / "map").runs()[0]
    wait_for(lambda: MapStore(tmp_path / "map").done(run), 120)
    others = family(driver.pid)
    os.kill(driver.pid if victim == "driver" else head(driver.pid), signal.SIGKILL)
    driver.wait(timeout=120)
    clean_up(driver, others)
    assert driver.returncode != 0

    before = arrays(tmp_path / "map", run)
    written = before["landcover"] != 255
    for name in ARRAYS:
        assert np.array_equal(before[name][written], undisturbed[name][written]), "only whole"
    outcome = mapped(tmp_path, in_sequence)
    assert outcome.resumed > 0
    assert_same(arrays(tmp_path / "map"), undisturbed)


def test_with_something_killed_every_few_seconds_the_map_still_comes_to_the_same_bytes(
    tmp_path: Path, undisturbed
) -> None:
    moments = random.Random(5)
    killed: list[str] = []
    for _ in range(8):
        driver = start(tmp_path)
        others: set[int] = set()
        while driver.poll() is None and len(killed) < 4:
            time.sleep(moments.uniform(2.0, 5.0))
            others |= family(driver.pid)
            workers = [pid for pid in family(driver.pid) if "Mapper" in command(pid)]
            victim = moments.choice([*workers, *workers, driver.pid]) if workers else driver.pid
            if workers:
                killed.append("driver" if victim == driver.pid else "worker")
                os.kill(victim, signal.SIGKILL)
        code = driver.wait(timeout=120)
        clean_up(driver, others)
        if code == 0:
            break
    assert killed, "it was disturbed"
    assert code == 0
    assert_same(arrays(tmp_path / "map"), undisturbed)


if __name__ == "__main__":
    mapped(Path(sys.argv[1]), RayShardRunner(2), pause=0.15)
