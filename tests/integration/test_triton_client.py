"""A real Triton, asked by the client: the same bytes as in this process, whatever happens to it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import rasterio
from prometheus_client import CollectorRegistry, generate_latest
from tritonclient.grpc import service_pb2
from typer.testing import CliRunner

from serving.mapper.predictors import predictor_for
from serving.triton import replicas
from serving.triton.client import Answer, AsyncTritonPredictor, TritonPredictor
from serving.triton.config import from_text, to_text
from serving.triton.endpoint import Endpoint
from serving.triton.lifecycle import Lifecycle
from serving.triton.replicas import Replica
from serving.triton.repository import ModelRepository
from serving.triton.server import TritonServer
from terrafine.cli.main import app
from terrafine.errors import ServingError
from terrafine.export import Release
from terrafine.legend import FBP, SEVEN
from terrafine.mapping import OnnxPredictor, Prediction
from terrafine.spec import MapSpec, ServeSpec
from terrafine.telemetry import RequestRecord, ServingMetrics
from tests.disks import small_disk
from tests.exported import FILL, images, small_release
from tests.imagery import smooth
from tests.processes import command, family
from tests.scenes import write_raster
from tests.triton import running_triton

SPEC = ServeSpec(max_batch=4, threads=1)
WINDOWS = images(6, seed=3)


class Truth:
    """What each release says of WINDOWS, by onnxruntime in this process."""

    def __init__(self, *releases: Release) -> None:
        self._answers = {}
        for release in releases:
            graph = OnnxPredictor(release.graph("fp32"), threads=1)
            self._answers[release.digest] = [graph.predict(one[None]) for one in WINDOWS]

    def holds(self, answer: Answer, index: int) -> bool:
        return same(answer, self._answers[answer.releases[0]][index])

    def holds_all(self, answer: Answer) -> bool:
        """Of all windows together, each by the release that it names."""
        said = [self._answers[release][i] for i, release in enumerate(answer.releases)]
        return all(
            np.array_equal(getattr(answer, name)[i], getattr(one, name)[0])
            for i, one in enumerate(said)
            for name in ("enhanced_NHW", "other_class_NHW", "other_NHW")
        )


def same(one: Prediction, two: Prediction) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for name in ("enhanced_NHW", "other_class_NHW", "other_NHW")
    )


class Load:
    """Threads that ask about WINDOWS one by one, at random, until the end; errors are kept."""

    def __init__(self, predictor: TritonPredictor, truth: Truth, threads: int = 3) -> None:
        self.answered: list[tuple[float, str]] = []
        self.wrong = 0
        self.errors: list[ServingError] = []
        self._end = threading.Event()
        self._predictor, self._truth = predictor, truth
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(threads)]

    def _ask(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._end.is_set():
            index = draw.randrange(len(WINDOWS))
            try:
                answer = self._predictor.predict(WINDOWS[index][None])
            except ServingError as error:
                self.errors.append(error)
                return
            self.wrong += not self._truth.holds(answer, index)
            self.answered.append((time.monotonic(), answer.versions[0]))

    def wait_for_more(self, count: int = 10) -> None:
        before, until = len(self.answered), time.monotonic() + 30
        while len(self.answered) < before + count and not self.errors:
            assert time.monotonic() < until, "nothing is answered any more"
            time.sleep(0.02)

    def versions(self) -> list[str]:
        return [version for _, version in self.answered]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


class Seen:
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self.causes: list[str] = []

    def request(self, record: RequestRecord) -> None:
        self.requests.append(record)

    def failure(self, model: str, cause: str) -> None:
        self.causes.append(cause)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, Release]:
    folder = tmp_path_factory.mktemp("releases")
    return small_release(folder / "a", seed=0), small_release(folder / "b", seed=1)


@pytest.fixture(scope="module")
def truth(releases: tuple[Release, Release]) -> Truth:
    return Truth(*releases)


@contextmanager
def serving(folder: Path, release: Release, spec: ServeSpec = SPEC) -> Iterator[TritonServer]:
    """A server that serves a release as its champion, also after a restart."""
    with running_triton(
        folder / "repository", folder=folder / "server", load=[spec.name]
    ) as server:
        lifecycle = lifecycle_of(server)
        lifecycle.deploy(release, spec)
        lifecycle.promote()
        yield server


def lifecycle_of(*servers: TritonServer) -> Lifecycle:
    endpoints = [Endpoint(server.grpc_url.removeprefix("grpc://")) for server in servers]
    return Lifecycle(ModelRepository(servers[0].repository, SPEC.name), endpoints)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, releases: tuple[Release, Release]
) -> Iterator[TritonServer]:
    with serving(tmp_path_factory.mktemp("served"), releases[0]) as started:
        yield started


def promote(server: TritonServer, release: Release, **serve: object) -> None:
    """Make a release champion with settings of its own beside those of the tests."""
    lifecycle = lifecycle_of(server)
    lifecycle.deploy(release, ServeSpec.model_validate(SPEC.model_dump() | serve))
    lifecycle.promote()


def backends(server: TritonServer) -> list[int]:
    found = [pid for pid in family(server.pid) if "python_backend_stub" in command(pid)]
    assert found
    return found


def regions(server: TritonServer) -> list[str]:
    """Shared memory that the server has mapped for clients."""
    replica = Replica(server.grpc_url.removeprefix("grpc://"))
    asked = service_pb2.SystemSharedMemoryStatusRequest()
    try:
        return list(replica.stub.SystemSharedMemoryStatus(asked, timeout=5).regions)
    finally:
        replica.close()


@pytest.mark.parametrize("shared_memory", [False, True, "auto"])
def test_a_server_says_the_same_bytes_as_onnxruntime_here(
    server: TritonServer, truth: Truth, releases: tuple[Release, Release], shared_memory: bool
) -> None:
    seen = Seen()
    with TritonPredictor(server.grpc_url, shared_memory=shared_memory, observer=seen) as predictor:
        answers = [predictor.predict(window[None]) for window in WINDOWS]
        together = predictor.predict(WINDOWS)
    assert all(truth.holds(answer, i) for i, answer in enumerate(answers))
    assert set(together.versions) == {"1"}
    assert set(together.releases) == {releases[0].digest}
    for i, answer in enumerate(answers):
        assert np.array_equal(together.other_class_NHW[i], answer.other_class_NHW[0])
    assert {record.shared_memory for record in seen.requests} == {bool(shared_memory)}
    assert sorted(record.windows for record in seen.requests[-2:]) == [2, 4]
    assert not regions(server)
    assert not list(Path("/dev/shm").glob(f"terrafine-client-{os.getpid()}-*"))


def test_over_the_wire_go_8_bytes_per_pixel_and_3_come_back(server: TritonServer) -> None:
    seen = Seen()
    with TritonPredictor(server.grpc_url, shared_memory=False, observer=seen) as predictor:
        predictor.predict(WINDOWS[1:2])
    (record,) = seen.requests
    assert record.sent < 8 * record.pixels + 500
    assert record.received < 3 * record.pixels + 500


def test_asyncio_asks_about_many_windows_at_once(server: TritonServer, truth: Truth) -> None:
    async def ask() -> list[Answer]:
        async with await AsyncTritonPredictor.connect(server.grpc_url) as predictor:
            assert predictor.window == WINDOWS.shape[-1]
            return await asyncio.gather(*(predictor.predict(w[None]) for w in WINDOWS))

    assert all(truth.holds(answer, i) for i, answer in enumerate(asyncio.run(ask())))


def test_windows_without_a_valid_pixel_are_never_sent(server: TritonServer, truth: Truth) -> None:
    windows = WINDOWS[[1, 2, 3]]
    windows[1, 2] = FILL  # one band is enough to make a pixel missing
    seen = Seen()
    with TritonPredictor(server.grpc_url, observer=seen) as predictor:
        answer = predictor.predict(windows)
    assert sum(record.windows for record in seen.requests) == 2
    assert answer.versions == ("1", "", "1")
    for array in (answer.enhanced_NHW, answer.other_class_NHW, answer.other_NHW):
        assert not array[1].any()
        assert array[0].any()


@pytest.mark.parametrize(
    ("windows", "reason"),
    [
        (
            WINDOWS.astype(np.float32),
            r"takes uint16 windows of shape \(N, 4, 64, 64\), not float32",
        ),
        (WINDOWS.astype(">u2"), "not >u2"),
        (WINDOWS[:, :3], r"not uint16 \(6, 3, 64, 64\)"),
        (WINDOWS[..., :32], r"\(6, 4, 64, 32\)"),
        (WINDOWS[0], r"\(4, 64, 64\)"),
        (WINDOWS[:0], "an empty batch"),
    ],
)
def test_windows_that_do_not_fit_are_refused_before_they_are_sent(
    server: TritonServer, windows: np.ndarray, reason: str
) -> None:
    with TritonPredictor(server.grpc_url) as predictor:
        before = predictor.statistics()
        with pytest.raises(ServingError, match=reason):
            predictor.predict(windows)
        assert predictor.statistics() == before


def test_a_message_that_would_be_too_large_is_split_or_refused(
    server: TritonServer, truth: Truth
) -> None:
    one = WINDOWS[0].nbytes
    seen = Seen()
    with TritonPredictor(server.grpc_url, max_message=2 * one + 9000, observer=seen) as predictor:
        predictor.predict(WINDOWS[:4])
    assert [record.windows for record in seen.requests] == [2, 2]
    with pytest.raises(ServingError, match=f"one window has {one} bytes, a message may have {one}"):
        TritonPredictor(server.grpc_url, max_message=one)


class Proxy(grpc.GenericRpcHandler):
    """A gRPC proxy before a server, which takes no message above ``most`` bytes.

    While ``gate`` is shut it keeps requests about windows; each is counted as ``arrived``.
    """

    def __init__(self, server: TritonServer, *, most: int = 2**31 - 1) -> None:
        self._channel = grpc.insecure_channel(server.grpc_url.removeprefix("grpc://"))
        self._pool = ThreadPoolExecutor(8)
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        limit = [("grpc.max_receive_message_length", most)]
        self._server = grpc.server(self._pool, handlers=[self], options=limit)
        self.url = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = self._channel.unary_unary(details.method)

        def forward(request: bytes, context: grpc.ServicerContext) -> bytes:
            if details.method.endswith("/ModelInfer"):
                self.arrived.release()
                self.gate.wait(timeout=200)
            try:
                return method(request)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(forward)

    def __enter__(self) -> Proxy:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.stop(None).wait()
        self._pool.shutdown()
        self._channel.close()


def test_a_message_that_a_proxy_does_not_let_through_is_one_clear_error(
    server: TritonServer, truth: Truth
) -> None:
    most = 3 * WINDOWS[0].nbytes
    seen = Seen()
    with Proxy(server, most=most) as proxy:
        with (
            TritonPredictor(proxy.url, shared_memory=False, observer=seen) as predictor,
            pytest.raises(
                ServingError,
                match=rf"a request of 131\d+ bytes \(4 windows\), whose answer has 49152, is larg.*"
                rf"vs\. {most}\)\); allow larger messages there, or ask for fewer windows at once",
            ),
        ):
            predictor.predict(WINDOWS[1:5])
        assert not seen.causes
        with TritonPredictor(proxy.url, shared_memory=False, max_message=most) as predictor:
            assert truth.holds_all(predictor.predict(WINDOWS))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_when_one_request_of_several_fails_the_others_end_before_the_error_is_raised(
    server: TritonServer, truth: Truth, asynchronous: bool
) -> None:
    windows = WINDOWS[[1, 1, 2, 3]]
    windows[1] = FILL  # so that a request of one window and a request of two are made of them
    seen = Seen()
    complaints: list[dict[str, object]] = []

    async def ask(predictor: TritonPredictor) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
        try:
            await AsyncTritonPredictor(predictor).predict(windows)
        finally:
            gc.collect()

    with (
        Proxy(server, most=2 * WINDOWS[0].nbytes) as proxy,
        TritonPredictor(proxy.url, shared_memory=False, observer=seen, in_flight=2) as predictor,
    ):
        proxy.gate.clear()
        with pytest.raises(ServingError, match=r"a request of 65\d+ bytes \(2 windows\)"):
            asyncio.run(ask(predictor)) if asynchronous else predictor.predict(windows)
        proxy.gate.set()
        assert truth.holds(predictor.predict(WINDOWS[4:5]), 4)
    # the window that was kept was neither answered later nor asked about again
    assert len(seen.requests) == 1
    assert not seen.causes
    assert not complaints


def test_a_task_that_is_cancelled_ends_its_requests_and_harms_no_other(
    server: TritonServer, truth: Truth
) -> None:
    seen = Seen()

    async def ask(proxy: Proxy) -> Answer:
        async with await AsyncTritonPredictor.connect(
            proxy.url, shared_memory=True, observer=seen, in_flight=2, max_batch=1
        ) as predictor:
            proxy.gate.clear()
            task = asyncio.create_task(predictor.predict(WINDOWS[1:6]))
            for _ in range(2):
                assert await asyncio.to_thread(proxy.arrived.acquire, timeout=60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # what was kept reaches the server beside the next
            proxy.gate.set()
            return await predictor.predict(WINDOWS[:2])

    with Proxy(server) as proxy:
        assert truth.holds_all(asyncio.run(ask(proxy)))
    assert len(seen.requests) == 2
    assert not seen.causes
    assert not list(Path("/dev/shm").glob(f"terrafine-client-{os.getpid()}-*"))


def test_who_is_given_up_ends_at_once_with_an_error(server: TritonServer) -> None:
    seen = Seen()
    with (
        Proxy(server) as proxy,
        TritonPredictor(proxy.url, observer=seen) as predictor,
        ThreadPoolExecutor(1) as pool,
    ):
        proxy.gate.clear()
        asked = pool.submit(predictor.predict, WINDOWS)
        assert proxy.arrived.acquire(timeout=60)
        predictor.give_up()
        with pytest.raises(ServingError, match="is not asked any more, it was given up"):
            asked.result(timeout=60)
        with pytest.raises(ServingError, match="it was given up; connect anew"):
            predictor.predict(WINDOWS)
    assert not seen.requests


def test_where_shared_memory_is_full_windows_travel_by_grpc_after_one_warning(
    server: TritonServer,
    truth: Truth,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = Seen()
    for full in small_disk(tmp_path / "shm", kilobytes=16):
        monkeypatch.setattr("serving.triton.regions._SHARED", full)
        with TritonPredictor(server.grpc_url, observer=seen, max_batch=1) as predictor:
            assert truth.holds_all(predictor.predict(WINDOWS))
            assert truth.holds_all(predictor.predict(WINDOWS))
        with (
            TritonPredictor(server.grpc_url, shared_memory=True) as predictor,
            pytest.raises(ServingError, match=r"no shared memory of .* No space left .*=False"),
        ):
            predictor.predict(WINDOWS)
        assert not list(full.iterdir())
    assert {record.shared_memory for record in seen.requests} == {False}
    (warning,) = (one.getMessage() for one in caplog.records if "shared memory" in one.getMessage())
    assert "No space left on device), so that windows travel by gRPC; enlarge /dev/shm" in warning


def test_what_is_not_there_is_said_clearly(server: TritonServer) -> None:
    with pytest.raises(ServingError, match=r"'other' is not ready .*unknown model.*`terrafine dep"):
        TritonPredictor(server.grpc_url, model="other", deadline=0.5)
    with pytest.raises(ServingError, match=r"release 123456 .*is not served .*as version 1"):
        TritonPredictor(server.grpc_url, release="123456")
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:9: unavailable"):
        TritonPredictor("grpc://127.0.0.1:9", deadline=0.5)
    with TritonPredictor(server.grpc_url) as predictor:
        with pytest.raises(ServingError, match="says the codes of another legend"):
            predictor.require(legend=FBP, fill=FILL)
        with pytest.raises(ServingError, match=r"takes 0 for a missing pixel, .* by 9"):
            predictor.require(legend=predictor.info.legend, fill=9)
        predictor.require(legend=predictor.info.legend, fill=FILL)


def test_a_server_that_is_about_to_start_is_waited_for_as_long_as_one_likes(
    server: TritonServer, truth: Truth
) -> None:
    server.kill()
    with pytest.raises(ServingError, match=r"is not ready .*unavailable"):
        TritonPredictor(server.grpc_url, connect=0.3)
    begin = threading.Timer(1, server.start)
    begin.start()
    try:
        with TritonPredictor(server.grpc_url, connect=60) as predictor:
            assert truth.holds(predictor.predict(WINDOWS[1:2]), 1)
    finally:
        begin.join()


@pytest.mark.slow
def test_a_full_queue_is_waited_for(
    tmp_path: Path, releases: tuple[Release, Release], truth: Truth
) -> None:
    spec = SPEC.model_copy(update={"queue_limit": 1, "max_batch": 1})
    seen = Seen()
    with (
        serving(tmp_path, releases[0], spec) as server,
        TritonPredictor(server.grpc_url, in_flight=12, observer=seen) as predictor,
        ThreadPoolExecutor(12) as pool,
    ):
        order = [i % len(WINDOWS) for i in range(60)]
        answers = list(pool.map(lambda i: predictor.predict(WINDOWS[i][None]), order))
        assert all(truth.holds(answer, i) for answer, i in zip(answers, order, strict=True))
        assert "queue_full" in seen.causes
        # and what waits in vain is told so at its deadline
        with TritonPredictor(server.grpc_url, deadline=1.0) as hasty:
            for pid in backends(server):
                os.kill(pid, signal.SIGSTOP)
            begun = time.monotonic()
            with pytest.raises(ServingError, match=r"no answer within 1 s, .* longer deadline"):
                hasty.predict(WINDOWS[1:2])
            assert time.monotonic() - begun < 3
            for pid in backends(server):
                os.kill(pid, signal.SIGCONT)


def test_an_answer_that_comes_too_late_never_gets_into_another_one(
    server: TritonServer, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try that was given up still writes into its shared memory when the server goes on, so
    that memory is used for nothing else, and unregistered only once that is over."""
    monkeypatch.setattr("serving.triton.client._GRACE", 3.0)
    with TritonPredictor(
        server.grpc_url, shared_memory=True, patience=0.3, in_flight=1, deadline=3
    ) as predictor:
        assert truth.holds(predictor.predict(WINDOWS[1:2]), 1)
        before = regions(server)
        stopped = backends(server)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        resume = threading.Timer(0.8, lambda: [os.kill(pid, signal.SIGCONT) for pid in stopped])
        resume.start()
        answers = [predictor.predict(WINDOWS[i][None]) for i in range(len(WINDOWS))]
        assert all(truth.holds(answer, i) for i, answer in enumerate(answers))
        resume.join()
        assert set(before) < set(regions(server))
        # a slow machine may give up an answer or two more: those are let go in their turn
        end = time.monotonic() + 60
        while len(regions(server)) > 1 and time.monotonic() < end:
            time.sleep(0.5)
            predictor.predict(WINDOWS[1:2])
        assert len(regions(server)) == 1
        assert not set(before) & set(regions(server))


@pytest.mark.parametrize("shared_memory", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_server_that_is_killed_and_comes_back_costs_no_window(
    server: TritonServer, truth: Truth, shared_memory: bool
) -> None:
    with (
        TritonPredictor(server.grpc_url, shared_memory=shared_memory) as predictor,
        Load(predictor, truth) as load,
    ):
        server.restart(kill=True)
        load.wait_for_more()
        server.restart()
        load.wait_for_more()
    assert not load.errors
    assert not load.wrong


def test_a_killed_backend_costs_no_window_once_it_is_healed(
    server: TritonServer, truth: Truth
) -> None:
    with (
        TritonPredictor(server.grpc_url, patience=1) as predictor,
        Load(predictor, truth) as load,
    ):
        for pid in backends(server):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        assert lifecycle_of(server).heal().healed
        load.wait_for_more()
    assert not load.errors
    assert not load.wrong


def test_a_replica_that_dies_is_left_out(
    tmp_path: Path, server: TritonServer, truth: Truth
) -> None:
    with running_triton(server.repository, folder=tmp_path, load=[SPEC.name]) as other:
        url = f"{server.grpc_url},{other.grpc_url.removeprefix('grpc://')}"
        with TritonPredictor(url, patience=1) as predictor, Load(predictor, truth) as load:
            counted = {found.server: found.windows for found in predictor.statistics()}
            assert min(counted.values()) > 1
            for pid in backends(other):
                os.kill(pid, signal.SIGKILL)
            load.wait_for_more()
            other.kill()
            load.wait_for_more(30)
    assert not load.errors
    assert not load.wrong


@pytest.mark.slow
def test_promotion_and_rollback_under_load_cost_no_window_and_no_wrong_answer(
    tmp_path: Path, releases: tuple[Release, Release], truth: Truth
) -> None:
    first, second = releases
    with serving(tmp_path, first) as server:
        lifecycle = lifecycle_of(server)
        with (
            TritonPredictor(server.grpc_url) as free,
            TritonPredictor(server.grpc_url, release="champion") as pinned,
            Load(free, truth) as load,
            Load(pinned, truth, threads=1) as pinned_load,
        ):
            assert pinned.release == first.digest
            lifecycle.deploy(second, SPEC)
            lifecycle.promote()
            load.wait_for_more()
            pinned_load.wait_for_more()
            after = len(load.answered)
            load.wait_for_more()
            assert set(load.versions()[after + 3 :]) == {"2"}
            lifecycle.rollback()
            load.wait_for_more()
            after = len(load.answered)
            load.wait_for_more()
            assert set(load.versions()[after + 3 :]) == {"1"}
        assert not load.errors + pinned_load.errors
        assert not load.wrong + pinned_load.wrong
        assert set(pinned_load.versions()) == {"1"}


@pytest.mark.parametrize("shared_memory", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_promotion_with_smaller_batches_costs_no_window(
    tmp_path: Path, releases: tuple[Release, Release], truth: Truth, shared_memory: bool
) -> None:
    seen = Seen()
    with (
        serving(tmp_path, releases[0]) as server,
        TritonPredictor(server.grpc_url, shared_memory=shared_memory, observer=seen) as predictor,
        ThreadPoolExecutor(2) as pool,
    ):
        end = threading.Event()

        def ask() -> list[Answer]:
            answers = []
            while not end.is_set():
                answers.append(predictor.predict(WINDOWS))
                assert truth.holds_all(answers[-1])
            return [*answers, predictor.predict(WINDOWS)]

        asking = [pool.submit(ask) for _ in range(2)]
        try:
            lifecycle = lifecycle_of(server)
            lifecycle.deploy(releases[1], SPEC.model_copy(update={"max_batch": 1}))
            lifecycle.promote()
        finally:
            end.set()
        for future in asking:
            last = future.result(timeout=120)[-1]
            assert set(last.versions) == {"2"}
            assert truth.holds_all(last)
    assert "batch_too_large" in seen.causes
    assert {record.windows for record in seen.requests} == {1, 2, 4}


@pytest.mark.slow
def test_a_rollback_ends_a_map_that_was_pinned_to_what_it_drops_with_one_error(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    with serving(tmp_path, releases[0]) as server:
        lifecycle = lifecycle_of(server)
        lifecycle.deploy(releases[1], SPEC)
        lifecycle.promote()
        with (
            TritonPredictor(server.grpc_url, release="champion") as dropped,
            TritonPredictor(server.grpc_url, release=releases[0].digest) as kept,
        ):
            dropped.predict(WINDOWS[1:2])
            lifecycle.rollback()
            with pytest.raises(
                ServingError, match=r"is not served \(any more\); served: .* as version 1; .*anew"
            ):
                dropped.predict(WINDOWS[1:2])
            assert kept.predict(WINDOWS[1:2]).versions == ("1",)


@pytest.mark.slow
def test_a_release_that_is_dropped_ends_a_map_that_was_pinned_to_it(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    spec = SPEC.model_copy(update={"loaded": 1})
    with (
        serving(tmp_path, releases[0], spec) as server,
        TritonPredictor(server.grpc_url, release="champion") as pinned,
    ):
        pinned.predict(WINDOWS[1:2])
        lifecycle = lifecycle_of(server)
        lifecycle.deploy(releases[1], spec)
        lifecycle.promote()
        begun = time.monotonic()
        with pytest.raises(
            ServingError, match=r"is not served \(any more\); served: .* as version 2"
        ):
            pinned.predict(WINDOWS[1:2])
        assert time.monotonic() - begun < 5


@pytest.mark.slow
def test_a_map_keeps_to_the_graph_it_began_with_when_its_release_is_promoted_with_another(
    tmp_path: Path,
) -> None:
    release = small_release(tmp_path / "release", variants=("fp32", "int8"))
    fp32, int8 = (OnnxPredictor(release.graph(v), threads=1) for v in ("fp32", "int8"))
    windows = WINDOWS[1:2]
    assert not same(fp32.predict(windows), int8.predict(windows))

    def worker(**serve: object) -> Prediction:
        """What a worker that starts now is told, where the spec has this section ``serve``."""
        spec = MapSpec.model_validate(
            {
                "name": "map",
                "champion": "release",
                "imagery": {"scenes": [{"name": "scene", "files": ["scene.tif"]}], "nodata": FILL},
                "map": {"predictor": "triton", "server": server.grpc_url, "deadline": 100},
                "serve": serve,
            }
        )
        opened = pickle.loads(pickle.dumps(predictor_for(spec, release, tmp_path)))  # noqa: S301
        return opened().predict(windows)

    with (
        serving(tmp_path, release) as server,
        TritonPredictor(server.grpc_url, release="champion", deadline=100) as pinned,
    ):
        promote(server, release, variant="int8")
        with TritonPredictor(server.grpc_url) as free:
            assert same(free.predict(windows), int8.predict(windows))
        # a worker that starts now, and a client whose servers were away for a moment
        assert same(worker(), fp32.predict(windows))
        assert same(worker(variant="int8"), int8.predict(windows))
        server.restart(kill=True)
        answer = pinned.predict(windows)
        assert answer.versions == ("1",)
        assert same(answer, fp32.predict(windows))
        # the second promotion drops the version of the map
        promote(server, release, variant="int8", max_batch=2)
        short = release.digest[:12]
        served = rf"served: {short} \(int8\) as version 2, {short} \(int8\) as version 3"
        with pytest.raises(ServingError, match=rf"release {short} \(fp32\) .* {served}"):
            worker()
        with pytest.raises(ServingError, match=rf"release {short} \(fp32\) .* {served}"):
            pinned.predict(windows)


def test_a_client_that_connects_while_another_champion_takes_over_is_served(
    tmp_path: Path, releases: tuple[Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPEC.model_copy(update={"loaded": 1})
    asked: list[str] = []

    class Overtaken(Replica):
        """The second champion is promoted between the two questions about the model."""

        def __init__(self, address: str) -> None:
            super().__init__(address)
            ask = self.stub.ModelConfig

            def config(request: object, timeout: float) -> object:
                if not asked:
                    promote(server, releases[1], loaded=1)
                asked.append(address)
                return ask(request, timeout=timeout)

            self.stub.ModelConfig = config

    with serving(tmp_path, releases[0], spec) as server:
        monkeypatch.setattr(replicas, "Replica", Overtaken)
        with TritonPredictor(server.grpc_url, release="champion", connect=100) as predictor:
            assert predictor.release == releases[1].digest
    assert len(asked) == 2


@pytest.mark.slow
def test_a_new_champion_with_another_legend_is_an_error_and_no_wrong_map(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    with (
        serving(tmp_path, releases[0]) as server,
        TritonPredictor(server.grpc_url) as free,
    ):
        free.predict(WINDOWS[1:2])
        folder = Path(server.repository) / SPEC.name
        config = from_text((folder / "config.pbtxt").read_text(), where="config.pbtxt")
        graph = json.loads(config.parameters["graph.1"].string_value)
        graph["terrafine.legend"] = FBP.model_dump_json()
        config.parameters["graph.2"].string_value = json.dumps(graph)
        config.parameters["release.2"].string_value = "another"
        config.version_policy.specific.versions[:] = [2]
        shutil.copytree(folder / "1", folder / "2")
        (folder / "config.pbtxt").write_text(to_text(config))
        Endpoint(server.grpc_url.removeprefix("grpc://")).load(SPEC.name)
        with pytest.raises(ServingError, match=r"version 2 has legend 'fbp'.*, not 'seven'"):
            free.predict(WINDOWS[1:2])


def test_the_example_for_plain_tritonclient_says_the_same(
    server: TritonServer, releases: tuple[Release, Release]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "triton-client.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    assert "localhost:8001" in example
    said: dict[str, object] = {}
    exec(example.replace("localhost:8001", server.grpc_url.removeprefix("grpc://")), said)
    predictor = OnnxPredictor(releases[0].graph("fp32"), threads=1)
    answer = predictor.predict(np.full((1, *WINDOWS.shape[1:]), 300, np.uint16))
    wins = answer.enhanced_NHW[0] > answer.other_NHW[0]
    expected = np.where(wins, SEVEN.code_of("impervious"), answer.other_class_NHW[0])
    assert np.array_equal(said["landcover"], expected)


def test_terrafine_predict_maps_the_same_with_a_server_as_without(
    server: TritonServer, releases: tuple[Release, Release], tmp_path: Path
) -> None:
    image = tmp_path / "scene.tif"
    write_raster(image, smooth(np.random.default_rng(4), 150, 210), nodata=FILL)
    maps = []
    for source in (("--url", server.grpc_url), ("--graph", releases[0].graph("fp32"))):
        out = tmp_path / f"{source[0][2:]}.tif"
        done = CliRunner().invoke(app, ["predict", *map(str, (image, *source, "--out", out))])
        assert done.exit_code == 0, done.output
        with rasterio.open(out) as dataset:
            maps.append(dataset.read(1))
            made_by = dataset.tags()["MADE_BY"]
        assert made_by in done.output
        if source[0] == "--url":
            assert made_by == f"release {releases[0].digest}"
    assert np.array_equal(*maps)


def test_metrics_of_client_and_server(server: TritonServer) -> None:
    registry = CollectorRegistry()
    metrics = ServingMetrics(registry=registry)
    with TritonPredictor(server.grpc_url, shared_memory=False, observer=metrics) as predictor:
        predictor.predict(WINDOWS[1:5])
        metrics.server(predictor.statistics())
    text = generate_latest(registry).decode()
    model = '{model="landcover"}'
    value = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
             for line in text.splitlines() if not line.startswith("#")}  # fmt: skip
    pixels = value[f"terrafine_serving_pixels_total{model}"]
    assert pixels == 4 * 64 * 64
    sent = value['terrafine_serving_message_bytes_total{direction="sent",model="landcover"}']
    assert 8 <= sent / pixels < 8.2
    assert value[f"terrafine_serving_batch_windows_sum{model}"] == 4
    assert value[f"terrafine_serving_answering_version{model}"] >= 1
    (windows,) = (v for k, v in value.items() if k.startswith("terrafine_serving_server_windows"))
    assert windows >= 4
