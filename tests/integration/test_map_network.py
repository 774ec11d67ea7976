"""A map whose model servers are behind a bad network: late, not wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from serving.mapper.predictors import OpenServed
from serving.triton.server import TritonServer
from terrafine.cli.main import app
from terrafine.errors import ServingError, StageError
from terrafine.export import Release
from terrafine.mapping import MapStore, RunState, run_states
from tests.networks import Network, network
from tests.scenes import Project, make_project
from tests.triton import SERVE, serve_release

# as a terminal starts it: a test may run in the background, where Ctrl-C is ignored
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from terrafine.cli.main import main; main()"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def project(tmp_path: Path, champion_release: Release) -> Project:
    """A scene of many small shards and a model for it."""
    made = make_project(tmp_path, size=256)
    shutil.copytree(champion_release.folder, made.root / "champion")
    made.change_spec(champion="champion", labels=None, assess=None)
    made.change_spec(map={"shard": 64, "enhance": {"block": 32}, "wave": 1, "threads": 1})
    return made


def run_map(project: Project, *command: str) -> Result:
    arguments = [*(command or ("run",)), str(project.spec), "-w", str(project.root / "run")]
    return CliRunner().invoke(app, ["map", *arguments, "--json"])


def map_of(project: Project) -> tuple[RunState, dict[str, np.ndarray]]:
    """The run that was committed to last."""
    store = MapStore(project.root / "run" / "map.icechunk")
    state, (zone,) = run_states(store)[-1], store.zones()
    arrays = ("landcover", "confidence", "source")
    return state, {name: store.read(zone, store.window(zone), name, state.run) for name in arrays}


def served(project: Project, between: Network, **settings: object) -> None:
    server = f"grpc://{between.address}"
    project.change_spec(map={"predictor": "triton", "server": server, **settings})


def wait_for_shards(project: Project, predictor: str) -> None:
    """Until a run with this predictor has committed some."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        store = MapStore(project.root / "run" / "map.icechunk")
        for run in store.runs():
            record = store.provenance(run)
            if record and record.mapping["predictor"] == predictor and store.done(run):
                return
        time.sleep(0.1)
    raise AssertionError("no shard was committed")


def in_the_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_through_a_network_that_drops_delays_refuses_and_forgets_the_map_is_the_local_one(
    project: Project,
    triton_server: TritonServer,
    champion_release: Release,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # so many windows that the map takes longer than the troubles
    project.change_spec(map={"core": 32, "halo": 32, "enhance": {"block": 32}, "shard": 32})
    done = run_map(project)
    assert done.exit_code == 0, done.output
    undisturbed, local = map_of(project)
    assert len(np.unique(local["landcover"])) > 3, "a map with something in it"

    serve_release(triton_server, champion_release, SERVE)
    with network(triton_server.grpc_url.removeprefix("grpc://")) as between:
        served(project, between, workers=2, deadline=24)

        def disturb() -> None:
            wait_for_shards(project, "triton")
            for trouble in (
                between.drop,
                lambda: between.slow(0.2),
                between.silence,
                between.refuse,
                between.forget,
            ):
                between.wait_for(10)
                trouble()
                time.sleep(1.5)
                between.restore()

        trouble = in_the_background(disturb)
        done = run_map(project)
        trouble.join(timeout=1)
        assert not trouble.is_alive(), "the map was disturbed to the end"
    assert done.exit_code == 0, done.output
    state, disturbed = map_of(project)
    assert state.run != undisturbed.run, "another engine is another map"
    for name, array in local.items():
        assert np.array_equal(disturbed[name], array), name
    assert "requests to the model servers failed and were sent again" in caplog.text
    assert "unavailable" in caplog.text
    assert "deadline exceeded" in caplog.text, "the forgotten connection was given up"


def test_ctrl_c_ends_a_map_whose_servers_are_silent_and_keeps_what_was_finished(
    project: Project, triton_server: TritonServer, champion_release: Release
) -> None:
    serve_release(triton_server, champion_release, SERVE)
    with network(triton_server.grpc_url.removeprefix("grpc://")) as between:
        served(project, between, wave=1000)
        command = [sys.executable, "-c", INTERRUPTIBLE, "map", "run", str(project.spec)]
        mapping = subprocess.Popen(
            [*command, "-w", str(project.root / "run")], stderr=subprocess.PIPE
        )
        try:
            between.wait_for(60)
            between.silence()
            time.sleep(1)
            mapping.send_signal(signal.SIGINT)
            _, said = mapping.communicate(timeout=90)
        finally:
            mapping.kill()
        assert mapping.returncode != 0
        assert b"Traceback" not in said, said.decode()
    state, _ = map_of(project)
    assert 0 < state.done < state.planned


def test_a_worker_waits_for_servers_that_restart_and_the_driver_does_not(
    triton_server: TritonServer, champion_release: Release
) -> None:
    serve_release(triton_server, champion_release, SERVE)
    with network(triton_server.grpc_url.removeprefix("grpc://")) as between:
        driver = OpenServed(
            f"grpc://{between.address}", SERVE.name, champion_release.digest, "fp32", deadline=200.0
        )
        worker = pickle.loads(pickle.dumps(driver))  # noqa: S301
        between.refuse()
        with pytest.raises(ServingError, match="is not ready"):
            driver()
        back = threading.Timer(15, between.restore)
        back.start()
        assert worker().window == champion_release.info.window
        back.join()


def test_a_network_that_is_gone_for_good_stops_the_map_with_one_sentence_and_it_resumes(
    project: Project, triton_server: TritonServer, champion_release: Release
) -> None:
    serve_release(triton_server, champion_release, SERVE)
    refused = run_map(project, "resume")
    assert isinstance(refused.exception, StageError)
    assert "begin" in str(refused.exception)
    with network(triton_server.grpc_url.removeprefix("grpc://")) as between:
        served(project, between, deadline=4)
        cut = in_the_background(lambda: (between.wait_for(60), between.silence())[1])
        broken = run_map(project)
        cut.join()
        assert isinstance(broken.exception, ServingError), broken.output
        sentence = str(broken.exception)
        assert "gave no answer within 4 s" in sentence
        assert "\n" not in sentence
        state, before = map_of(project)
        assert 0 < state.done < state.planned

        between.restore()
        resumed = run_map(project, "resume")
        assert resumed.exit_code == 0, resumed.output
        assert json.loads(resumed.stdout)["metrics"]["resumed"] == state.done
    state, after = map_of(project)
    assert state.done == state.planned
    written = before["landcover"] != 255
    for name, array in before.items():
        assert np.array_equal(after[name][written], array[written]), "nothing is written twice"
    again = run_map(project, "resume")
    assert "nothing to resume" in str(again.exception)
