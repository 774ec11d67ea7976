"""Deploy, promote, roll back and heal on a real Triton, which serves without a break."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton

from serving.triton.client import TritonPredictor
from serving.triton.deploy import deploy_release
from serving.triton.endpoint import ADMIN_VARIABLE, Endpoint, slowest_batch
from serving.triton.lifecycle import Lifecycle
from serving.triton.lock import LockedError
from serving.triton.repository import ModelRepository
from serving.triton.server import TritonServer
from terrafine.errors import ModelError, ServingError, StorageError
from terrafine.export import OUTPUTS, Prediction, Release, read_release
from terrafine.export.release import CANARY
from terrafine.export.session import UInt16Array
from terrafine.storage import Storage
from tests.buckets import s3_bucket
from tests.disks import small_disk
from tests.exported import images
from tests.processes import command, family, living
from tests.triton import SERVE, lifecycle, running_triton, serve_release

Releases = tuple[Release, Release]


def answering(server: TritonServer) -> int:
    """The version that answers those who name none; its bytes must be those of its release."""
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        return Asking(client, server.repository).ask()


class Asking:
    """Clients that name no version, and hold every answer against the release it names."""

    def __init__(self, client: triton.InferenceServerClient, repository: str) -> None:
        self._client = client
        self._champions = ModelRepository(repository, SERVE.name).champions
        self.versions: list[int] = []
        self.errors: list[str] = []

    def ask(self) -> int:
        window = images(3, seed=9)[:1]  # the first of every release's canary
        image = triton.InferInput("image", list(window.shape), "UINT16")
        image.set_data_from_numpy(window)
        answer = self._client.infer(SERVE.name, [image])
        version = int(answer.get_response().model_version)
        recorded = self._champions.read(version).answers
        for name, wanted in zip(OUTPUTS, vars(recorded).values(), strict=True):
            assert np.array_equal(answer.as_numpy(name), wanted[:1]), (version, name)
        return version

    @contextmanager
    def all_the_time(self) -> Iterator[None]:
        """Ask without pause and without a second try until the end."""
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                try:
                    self.versions.append(self.ask())
                except (triton.InferenceServerException, AssertionError) as error:
                    self.errors.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def healthy(server: TritonServer) -> bool:
    """Endpoint and model are ready, as the probes see it."""
    for path in ("v2/health/ready", f"v2/models/{SERVE.name}/ready"):
        with urllib.request.urlopen(f"{server.http_url}/{path}", timeout=5) as answer:
            if answer.status != 200:
                return False
    return True


def test_releases_come_and_go_under_load_without_an_error_or_a_wrong_answer(
    triton_server: TritonServer, releases: Releases
) -> None:
    first, second = releases
    address = triton_server.grpc_url.removeprefix("grpc://")
    with lifecycle(triton_server) as versions, triton.InferenceServerClient(address) as client:
        staged, (canary,) = versions.deploy(first, SERVE)
        assert (staged.number, canary.exact) == (1, True)
        assert not versions.status().healthy
        with pytest.raises(triton.InferenceServerException, match="unknown model"):
            answering(triton_server)
        assert versions.promote().version == 1
        assert answering(triton_server) == 1
        asking = Asking(client, triton_server.repository)
        with asking.all_the_time():
            versions.deploy(second, SERVE)
            assert answering(triton_server) == 1
            assert versions.promote().version == 2
            assert answering(triton_server) == 2
            assert versions.rollback().version == 1
            assert answering(triton_server) == 1
            versions.deploy(second, SERVE)
            assert versions.promote().version == 3
        assert asking.errors == []
        assert asking.versions[0] == 1
        assert {1, 2, 3} <= set(asking.versions) | {answering(triton_server)}
        found = versions.status()
        assert found.healthy
        assert found.champion is not None
        assert (found.champion.version, found.champion.release) == (3, second.digest)
        # the version before stays for those who began with it
        assert found.servers[0].versions.keys() >= {1, 3}
        assert {n for n, state in found.servers[0].versions.items() if state == "READY"} == {1, 3}


def test_what_the_production_configuration_asks_for_loads_without_a_gpu(
    triton_server: TritonServer, releases: Releases
) -> None:
    spec = SERVE.model_copy(
        update={"tensorrt": "fp16", "instances": 2, "preferred_batches": (4, 8), "max_batch": 8}
    )
    assert serve_release(triton_server, releases[0], spec) == 1
    assert answering(triton_server) == 1


def with_answers_of_another(releases: Releases, folder: Path) -> Release:
    """A release in itself whole, whose recorded answers are another model's."""
    first, second = releases
    shutil.copytree(second.folder, folder)
    shutil.copy(first.folder / CANARY, folder / CANARY)
    info = second.info.model_copy(update={"canary_sha256": first.info.canary_sha256})
    text = info.model_dump_json()[:-1] + f', "digest": "{info.digest}"}}'
    (folder / "release.json").write_text(text)
    return read_release(folder)


def test_candidate_that_fails_leaves_the_champion_and_the_endpoint_ready(
    triton_server: TritonServer, releases: Releases, tmp_path: Path
) -> None:
    serve_release(triton_server, releases[0])
    with lifecycle(triton_server) as versions:
        wrong = with_answers_of_another(releases, tmp_path / "wrong")
        with pytest.raises(ServingError, match=r"failed its canary .* classes agree .* on 0"):
            versions.deploy(wrong, SERVE)
        without_gpu = SERVE.model_copy(update={"device": "gpu"})
        with pytest.raises(ServingError, match=r"did not load landcover-candidate: .*GPU"):
            versions.deploy(releases[1], without_gpu)
        assert healthy(triton_server)
        assert answering(triton_server) == 1
        with pytest.raises(ServingError, match="no candidate is staged"):
            versions.promote()
        # edited between its canary and its promotion
        version, _ = versions.deploy(releases[1], SERVE)
        path = Path(triton_server.repository, "landcover-candidate", str(version.number))
        (path / "model.onnx").write_bytes(b"not " + (path / "model.onnx").read_bytes())
        with pytest.raises(ModelError, match=r"model.onnx: damaged or edited"):
            versions.promote()
        assert healthy(triton_server)
        found = versions.status()
        assert found.healthy
        assert (found.serving, found.before) == (1, None)


def that_mixes_up_batches(release: Release, folder: Path) -> Release:
    """A release in itself whole, whose graph gives each window of a batch the classes of the next
    one; of a single window it says what was recorded."""
    shutil.copytree(release.folder, folder)
    path = folder / "model.fp32.onnx"
    model = onnx.load(path)
    (last,) = (node for node in model.graph.node if "other_class" in node.output)
    last.output[list(last.output).index("other_class")] = "in order"
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([bound]), str(bound)) for bound in (0, 1, 1 << 30)
    )
    model.graph.node.extend(
        [
            onnx.helper.make_node("Slice", ["in order", "1", str(1 << 30), "0"], ["others"]),
            onnx.helper.make_node("Slice", ["in order", "0", "1", "0"], ["first"]),
            onnx.helper.make_node("Concat", ["others", "first"], ["other_class"], axis=0),
        ]
    )
    onnx.save(model, path)
    entry = release.info.graphs["fp32"].model_copy(
        update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    )
    info = release.info.model_copy(update={"graphs": {"fp32": entry}})
    text = info.model_dump_json()[:-1] + f', "digest": "{info.digest}"}}'
    (folder / "release.json").write_text(text)
    return read_release(folder)


def test_version_that_answers_otherwise_in_a_batch_is_refused(
    triton_server: TritonServer, releases: Releases, tmp_path: Path
) -> None:
    serve_release(triton_server, releases[0])
    mixing = that_mixes_up_batches(releases[1], tmp_path / "mixing")
    with lifecycle(triton_server) as versions:
        _, (canary,) = versions.deploy(mixing, SERVE.model_copy(update={"max_batch": 1}))
        assert canary.exact
        with pytest.raises(
            ServingError, match=r"failed its canary .* asked about 8 windows at once, its classes"
        ):
            versions.deploy(mixing, SERVE)
        assert versions.status().candidate is None
    assert answering(triton_server) == 1


def test_only_who_has_the_key_changes_what_is_served_and_all_may_ask(
    tmp_path: Path, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = "model-repository,shared-memory:admin-key=open sesame"
    options = [f"--grpc-restricted-protocol={what}", f"--http-restricted-api={what}"]
    with running_triton(tmp_path / "models", options=options) as server:
        spec = SERVE.model_copy(update={"server": server.grpc_url, "repository": server.repository})
        monkeypatch.delenv(ADMIN_VARIABLE, raising=False)
        for key in (None, "admin-key=guessed"):
            if key is not None:
                monkeypatch.setenv(ADMIN_VARIABLE, key)
            with pytest.raises(
                ServingError, match=r"did not .*: This protocol is restricted.*; set TERRAFINE_TRI"
            ):
                deploy_release(releases[0], spec)
        monkeypatch.setenv(ADMIN_VARIABLE, "admin-key=open sesame")
        assert deploy_release(releases[0], spec)["servers"] == 1
        monkeypatch.delenv(ADMIN_VARIABLE)

        address = server.grpc_url.removeprefix("grpc://")
        with triton.InferenceServerClient(address) as client:
            for forbidden in (
                lambda: client.load_model(SERVE.name),
                lambda: client.unload_model(SERVE.name),
                client.get_model_repository_index,
            ):
                with pytest.raises(triton.InferenceServerException, match="is restricted"):
                    forbidden()
        unload = f"{server.http_url}/v2/repository/models/{SERVE.name}/unload"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(unload, data=b"{}", timeout=60)

        window = images(3, seed=9)[:1]
        with TritonPredictor(server.grpc_url) as predictor:
            said = predictor.predict(window)
        _, recorded = releases[0].canary("fp32")
        assert np.array_equal(said.other_class_NHW, recorded.other_class_NHW[:1])
        with (
            TritonPredictor(server.grpc_url, shared_memory=True) as predictor,
            pytest.raises(ServingError, match=r"no shared memory .*This protocol is restricted"),
        ):
            predictor.predict(window)
        assert not list(Path("/dev/shm").glob(f"terrafine-client-{os.getpid()}-*"))
        assert healthy(server)


class DamagedOnTheWay(Endpoint):
    """The disk under the repository loses a byte just before the champion-to-be is loaded."""

    file: Path

    def load(self, name: str) -> None:
        if name == SERVE.name and self.file.exists():
            self.file.write_bytes(b"no graph")
        super().load(name)


def test_champion_to_be_that_does_not_load_gives_way_to_the_one_that_was(
    triton_server: TritonServer, releases: Releases
) -> None:
    serve_release(triton_server, releases[0])
    repository = ModelRepository(triton_server.repository, SERVE.name)
    address = triton_server.grpc_url.removeprefix("grpc://")
    with DamagedOnTheWay(address) as server, triton.InferenceServerClient(address) as client:
        server.file = Path(triton_server.repository, "landcover", "2", "model.onnx")
        versions = Lifecycle(repository, [server])
        asking = Asking(client, triton_server.repository)
        with asking.all_the_time():
            versions.deploy(releases[1], SERVE)
            with pytest.raises(ServingError, match="did not load landcover: "):
                versions.promote()
        assert asking.errors == []
        assert set(asking.versions) == {1}
        assert healthy(triton_server)
        assert versions.status().healthy
        assert not server.file.exists()
        # the candidate is still there for another try
        server.file = Path(triton_server.repository, "nothing")
        assert versions.promote().version == 2
    assert answering(triton_server) == 2


def test_servers_of_one_repository_change_together_or_not_at_all(
    triton_server: TritonServer, releases: Releases
) -> None:
    with running_triton(triton_server.repository) as other:
        with lifecycle(triton_server, other) as versions:
            versions.deploy(releases[0], SERVE)
            versions.promote()
            assert (answering(triton_server), answering(other)) == (1, 1)
            versions.deploy(releases[1], SERVE)
        address = other.grpc_url.removeprefix("grpc://")
        with (
            lifecycle(triton_server) as alone,
            Endpoint(address) as second,
        ):
            repository = ModelRepository(triton_server.repository, SERVE.name)
            first = alone.servers[0]
            both = Lifecycle(repository, [first, Cut(second, other)])
            with pytest.raises(ServingError, match="did not load landcover"):
                both.promote()
            assert answering(triton_server) == 1
            assert not both.status().healthy
            other.start()
            assert both.heal().healed == [address]
            assert both.status().healthy
            assert answering(other) == 1


class Cut:
    """A server that is killed when it is to load the champion-to-be."""

    def __init__(self, endpoint: Endpoint, server: TritonServer) -> None:
        self._endpoint, self._server, self._cut = endpoint, server, False

    def load(self, name: str) -> None:
        if name == SERVE.name and not self._cut:
            self._cut = True
            self._server.kill()
        self._endpoint.load(name)

    def __getattr__(self, name: str) -> object:
        return getattr(self._endpoint, name)


def test_server_that_is_away_keeps_no_other_from_a_rollback_and_is_named(
    triton_server: TritonServer, releases: Releases
) -> None:
    with (
        running_triton(triton_server.repository, load=[SERVE.name]) as other,
        lifecycle(triton_server, other) as versions,
    ):
        here, away = (server.address for server in versions.servers)
        for release in releases:
            versions.deploy(release, SERVE)
            versions.promote()
        versions.deploy(releases[0], SERVE)
        other.kill()
        for change in (versions.promote, lambda: versions.deploy(releases[1], SERVE)):
            with pytest.raises(ServingError, match=f"{away}: does not answer.*--url grpc://{here}"):
                change()
        found = versions.status()
        assert (found.serving, found.candidate, found.begun) == (2, 3, None)
        assert answering(triton_server) == 2

        event = versions.rollback()
        assert (event.version, event.away) == (1, (away,))
        assert answering(triton_server) == 1
        other.start()
        assert answering(other) == 1
        assert versions.heal().healthy

        other.kill()
        triton_server.kill()
        with pytest.raises(ServingError, match=f"{here},{away}: no server answers; start one"):
            versions.rollback()


class Counting(Endpoint):
    """Counts the requests that it is asked."""

    asked = 0

    def ask(self, name: str, version: int, windows_NCHW: UInt16Array) -> Prediction:
        self.asked += 1
        return super().ask(name, version, windows_NCHW)


def test_look_asks_a_well_server_once_and_reads_the_files_of_a_champion_once(
    triton_server: TritonServer, releases: Releases
) -> None:
    read: list[str] = []

    class Read(Storage):
        def read(self, name: str) -> bytes | None:
            read.append(name)
            return super().read(name)

    repository = ModelRepository(triton_server.repository, SERVE.name)
    repository.champions.storage = Read(repository.champions.storage.location)
    with Counting(triton_server.grpc_url.removeprefix("grpc://")) as server:
        versions = Lifecycle(repository, [server])
        for release in releases:
            number = serve_release(triton_server, release)
            windows_NCHW, _ = release.canary("fp32")
            for _ in range(2):
                server.asked = 0
                found = versions.heal()
                assert (found.healthy, found.serving) == (True, number)
                assert server.asked == len(windows_NCHW)
            assert read.count(f"{number}/model.onnx") == 1


class Deaf(Endpoint):
    """A server that answers nothing for the champion-to-be."""

    def ask(self, name: str, version: int, windows_NCHW: UInt16Array) -> Prediction:
        if (name, version) == (SERVE.name, 2):
            raise ServingError(f"grpc://{self.address}: no word")
        return super().ask(name, version, windows_NCHW)


class Refusing(Endpoint):
    """A server that loads the champion-to-be, and nothing after that."""

    loads = 0

    def load(self, name: str) -> None:
        self.loads += name == SERVE.name
        if self.loads > 1:
            raise ServingError(f"grpc://{self.address}: busy")
        super().load(name)


@pytest.mark.slow
def test_server_that_cannot_go_back_keeps_no_other_from_it_and_is_healed(
    triton_server: TritonServer, releases: Releases
) -> None:
    repository = ModelRepository(triton_server.repository, SERVE.name)
    with running_triton(triton_server.repository) as other:
        with lifecycle(triton_server, other) as versions:
            versions.deploy(releases[0], SERVE)
            versions.promote()
            versions.deploy(releases[1], SERVE)
            addresses = [server.address for server in versions.servers]
            with (
                Refusing(addresses[0]) as first,
                Deaf(addresses[1]) as second,
                pytest.raises(ServingError, match=f"{addresses[1]}: .* no word"),
            ):
                Lifecycle(repository, [first, second]).promote()
            assert answering(other) == 1
            assert not Path(triton_server.repository, "landcover", "2").exists()
            found = versions.status()
            assert not found.healthy
            wrong, right = (server.canary for server in found.servers)
            assert wrong is not None
            assert right is not None
            assert (wrong.verdict, right.verdict) == ("other", "passed")
            assert "gives version 2 of landcover, not 1" in wrong.reason
            assert versions.heal().healed == addresses[:1]
            assert versions.status().healthy
        assert answering(triton_server) == 1


def break_history(repository: ModelRepository, fails: Callable[[int], bool]) -> None:
    """Let some of the writes of history.json fail, counted from now on."""
    count = itertools.count(1)

    class Broken(Storage):
        def write(self, name: str, data: bytes) -> None:
            if name == "history.json" and fails(next(count)):
                raise StorageError(f"{self}/{name}: cannot write it (503 Slow Down)")
            super().write(name, data)

    repository.champions.storage = Broken(repository.champions.storage.location)


@pytest.mark.parametrize(
    "fails",
    [lambda n: n == 1, lambda n: n == 2, lambda n: n > 1],
    ids=["before the change", "after it", "after it, and when it is undone"],
)
def test_history_that_cannot_be_written_leaves_the_champion_that_was(
    triton_server: TritonServer, releases: Releases, fails: Callable[[int], bool]
) -> None:
    serve_release(triton_server, releases[0])
    with lifecycle(triton_server) as versions:
        versions.deploy(releases[1], SERVE)
        broken = ModelRepository(triton_server.repository, SERVE.name)
        break_history(broken, fails)
        with pytest.raises(StorageError, match=r"history\.json: cannot write it"):
            Lifecycle(broken, versions.servers).promote()
        assert answering(triton_server) == 1
        triton_server.restart(kill=True)
        assert answering(triton_server) == 1
        versions.heal()
        found = versions.status()
        assert found.healthy
        assert found.begun is None
        assert not Path(triton_server.repository, "landcover", "2").exists()
        assert versions.promote().version == 2
    assert answering(triton_server) == 2


def test_what_was_begun_serves_on_where_the_champion_before_it_is_damaged(
    triton_server: TritonServer, releases: Releases
) -> None:
    serve_release(triton_server, releases[0])
    Path(triton_server.repository, "landcover", "1", "model.onnx").write_bytes(b"no graph")
    with lifecycle(triton_server) as versions:
        versions.deploy(releases[1], SERVE)
        broken = ModelRepository(triton_server.repository, SERVE.name)
        break_history(broken, lambda n: n == 2)
        with pytest.raises(StorageError, match=r"history\.json: cannot write it"):
            Lifecycle(broken, versions.servers).promote()
        triton_server.restart(kill=True)
        assert answering(triton_server) == 2
        assert not versions.status().healthy
        versions.deploy(releases[1], SERVE)
        assert versions.promote().version == 3
        assert versions.status().healthy


class FillsTheDisk(Endpoint):
    """The disk is full once the champion-to-be is loaded."""

    disk: Path

    def load(self, name: str) -> None:
        super().load(name)
        if name == SERVE.name:
            (self.disk / "in the way").write_bytes(bytes(shutil.disk_usage(self.disk).free))


def test_disk_that_is_full_when_the_history_is_written_leaves_what_the_configuration_names(
    tmp_path: Path, releases: Releases
) -> None:
    size = sum(p.stat().st_size for p in releases[0].folder.iterdir())
    for disk in small_disk(tmp_path / "small", kilobytes=round(4.5 * size / 1024)):
        with running_triton(disk / "models", load=[SERVE.name]) as server:
            serve_release(server, releases[0])
            with lifecycle(server) as versions:
                versions.deploy(releases[1], SERVE)
                repository = ModelRepository(server.repository, SERVE.name)
                with FillsTheDisk(versions.servers[0].address) as filling:
                    filling.disk = disk
                    with pytest.raises(StorageError, match=r"history\.json.* No space left"):
                        Lifecycle(repository, [filling]).promote()
                # nothing can be put back, so nothing that is served is taken away
                assert answering(server) == 2
                server.restart(kill=True)
                assert answering(server) == 2
                assert not versions.status().healthy
                (disk / "in the way").unlink()
                versions.heal()
                assert versions.status().healthy
                assert answering(server) == 1


class Killing(Endpoint):
    """This process is killed once the champion-to-be is loaded here."""

    def load(self, name: str) -> None:
        super().load(name)
        if name == SERVE.name:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at_work(verb: str, repository: str, address: str) -> None:
    getattr(Lifecycle(ModelRepository(repository, SERVE.name), [Killing(address)]), verb)()


@pytest.fixture
def killed(triton_server: TritonServer, releases: Releases) -> Callable[[str], Lifecycle]:
    """Kill a promotion of version 3, or a rollback to version 1, at work; the champion is 2."""
    serve_release(triton_server, releases[0])
    serve_release(triton_server, releases[1])
    address = triton_server.grpc_url.removeprefix("grpc://")

    def kill(verb: str) -> Lifecycle:
        repository = ModelRepository(triton_server.repository, SERVE.name)
        Lifecycle(repository, [Endpoint(address)]).deploy(releases[0], SERVE)
        process = multiprocessing.get_context("spawn").Process(
            target=killed_at_work, args=(verb, triton_server.repository, address)
        )
        process.start()
        process.join(timeout=120)
        assert process.exitcode == -signal.SIGKILL
        versions = Lifecycle(repository, [Endpoint(address)])
        found = versions.status()
        assert not found.healthy
        assert found.champion is not None
        assert found.begun is not None
        assert (found.champion.version, found.begun.event) == (2, verb)
        assert found.serving == found.begun.version == answering(triton_server)
        # as long as it may live nobody interferes
        looked = versions.heal()
        assert (looked.healed, looked.begun) == ([], found.begun)
        with pytest.raises(LockedError, match=rf"process {process.pid} on .* at work.*{verb}"):
            versions.deploy(releases[0], SERVE)
        dead = ModelRepository(triton_server.repository, SERVE.name, lease=0.01)
        return Lifecycle(dead, [Endpoint(address)])

    return kill


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_killed_change_is_undone_by_the_watch(
    triton_server: TritonServer, killed: Callable[[str], Lifecycle], verb: str
) -> None:
    versions = killed(verb)
    triton_server.restart(kill=True)
    versions.heal()
    found = versions.status()
    assert found.healthy
    assert found.begun is None
    assert answering(triton_server) == 2
    assert not Path(triton_server.repository, "landcover", "3").exists()
    assert Path(triton_server.repository, "landcover", "1").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "then", "champion"),
    [("promote", "promote", 3), ("promote", "rollback", 2), ("rollback", "rollback", 1)],
)
def test_after_a_killed_change_the_next_one_does_what_it_says(
    triton_server: TritonServer,
    killed: Callable[[str], Lifecycle],
    verb: str,
    then: str,
    champion: int,
) -> None:
    versions = killed(verb)
    assert getattr(versions, then)().version == champion
    assert versions.status().healthy
    assert answering(triton_server) == champion


def test_of_two_deployers_each_gets_its_own_release_or_one_clear_sentence(
    triton_server: TritonServer, releases: Releases
) -> None:
    first, second = releases
    with lifecycle(triton_server) as ours, lifecycle(triton_server) as theirs:
        ours.deploy(first, SERVE)
        theirs.deploy(second, SERVE)
        with pytest.raises(
            ServingError,
            match=f"candidate is release {second.digest[:12]} .version 2., not "
            f"{first.digest[:12]}; somebody has deployed it since",
        ):
            ours.promote(first.digest)
        assert theirs.promote(second.digest).release == second.digest
        repository = ModelRepository(triton_server.repository, SERVE.name)
        with repository.locked("promote"):
            for change in (theirs.promote, theirs.rollback, lambda: theirs.deploy(first, SERVE)):
                with pytest.raises(LockedError, match=r"is at work on it \(promote since"):
                    change()
            assert theirs.status().healthy
        assert theirs.status().healthy


@pytest.mark.slow
def test_pipeline_run_again_leaves_the_champion_alone_unless_it_is_to_be_served_otherwise(
    triton_server: TritonServer, releases: Releases
) -> None:
    spec = SERVE.model_copy(
        update={"server": triton_server.grpc_url, "repository": triton_server.repository}
    )
    assert deploy_release(releases[0], spec)["version"] == 1
    assert deploy_release(releases[0], spec)["version"] == 1
    for n, change in enumerate(({"max_batch": 2}, {"instances": 2}, {"queue_limit": 9}), start=2):
        otherwise = spec.model_copy(update=change)
        assert deploy_release(releases[0], otherwise)["version"] == n
        assert deploy_release(releases[0], otherwise)["version"] == n
    with triton.InferenceServerClient(triton_server.grpc_url.removeprefix("grpc://")) as client:
        config = client.get_model_config(SERVE.name).config
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 9


class Distorting(Endpoint):
    """Beside another version the first one answers otherwise, as with other kernels."""

    def ask(self, name: str, version: int, windows_NCHW: UInt16Array) -> Prediction:
        said = super().ask(name, version, windows_NCHW)
        if (name, version) != (SERVE.name, 1):
            return said
        return replace(said, other_class_NHW=np.roll(said.other_class_NHW, 7, axis=1))


@pytest.mark.slow
def test_version_that_stays_loaded_has_to_answer_as_before_too(
    triton_server: TritonServer, releases: Releases
) -> None:
    serve_release(triton_server, releases[0])
    repository = ModelRepository(triton_server.repository, SERVE.name)
    with Distorting(triton_server.grpc_url.removeprefix("grpc://")) as server:
        versions = Lifecycle(repository, [server])
        versions.deploy(releases[1], SERVE)
        with pytest.raises(ServingError, match=r"version 1 of landcover, which stays .*loaded: 1"):
            versions.promote()
        assert answering(triton_server) == 1
        versions.deploy(releases[1], SERVE.model_copy(update={"loaded": 1}))
        assert versions.promote().version == 3


def test_hung_backend_is_replaced(triton_server: TritonServer, releases: Releases) -> None:
    serve_release(triton_server, releases[0])
    repository = ModelRepository(triton_server.repository, SERVE.name)
    with Endpoint(triton_server.grpc_url.removeprefix("grpc://"), patience=1) as server:
        assert slowest_batch(server._statistics(SERVE.name, 1)) > 0
        versions = Lifecycle(repository, [server])
        stubs = [pid for pid in family(triton_server.pid) if "landcover" in command(pid)]
        assert stubs
        for pid in stubs:
            os.kill(pid, signal.SIGSTOP)
        (found,) = versions.status().servers
        assert found.canary is not None
        assert found.canary.verdict == "silent"
        # Triton itself may notice before the client's patience ends
        assert re.search(r"Deadline|not healthy", found.canary.reason)
        assert versions.heal().healed == [server.address]
        assert answering(triton_server) == 1


def test_killed_backend_is_replaced_and_a_restarted_server_serves_the_champion(
    triton_server: TritonServer, releases: Releases
) -> None:
    serve_release(triton_server, releases[0])
    serve_release(triton_server, releases[1])
    with lifecycle(triton_server) as versions:
        assert versions.heal().healed == []
        for _ in range(2):  # once the files are new to Triton, once they are not
            stubs = [pid for pid in family(triton_server.pid) if "landcover" in command(pid)]
            assert stubs
            for pid in stubs:
                os.kill(pid, signal.SIGKILL)
            assert not living(stubs, seconds=10)
            (server,) = versions.status().servers
            assert server.canary is not None
            assert (server.canary.verdict, healthy(triton_server)) == ("silent", True)
            assert len(versions.heal().healed) == 1
            assert answering(triton_server) == 2
        triton_server.restart(kill=True)
        assert answering(triton_server) == 2
        assert versions.status().healthy
    pids = family(triton_server.pid)
    triton_server.stop()
    assert not living(pids, seconds=10)
    assert not list(Path("/dev/shm").glob(f"{triton_server.shared_memory_prefix}*"))


def test_full_disk_under_the_repository_leaves_the_champion_serving(
    tmp_path: Path, releases: Releases
) -> None:
    size = sum(p.stat().st_size for p in releases[0].folder.iterdir())
    for disk in small_disk(tmp_path / "small", kilobytes=round(2.7 * size / 1024)):
        with running_triton(disk / "models") as server, lifecycle(server) as versions:
            serve_release(server, releases[0])
            versions.deploy(releases[1], SERVE)
            with pytest.raises(StorageError, match="No space left"):
                versions.promote()
            assert answering(server) == 1
            assert healthy(server)
            assert versions.status().healthy


@pytest.mark.slow
def test_repository_in_a_bucket_serves_as_one_on_disk(releases: Releases) -> None:
    with s3_bucket() as bucket:
        repository = f"{bucket}/models/triton"
        with running_triton(repository, load=[SERVE.name]) as server:
            serve_release(server, releases[0])
            with lifecycle(server) as versions:
                versions.deploy(releases[1], SERVE)
                assert versions.promote().version == 2
                server.restart(kill=True)
                assert versions.status().healthy
                stubs = [pid for pid in family(server.pid) if "landcover" in command(pid)]
                for pid in stubs:
                    os.kill(pid, signal.SIGKILL)
                assert not living(stubs, seconds=10)
                assert len(versions.heal().healed) == 1
                assert versions.rollback().version == 1
                assert versions.status().healthy
