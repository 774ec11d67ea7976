"""``terrafine deploy``, ``promote``, ``rollback``, ``status``, ``watch`` and ``serve``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serving.triton.endpoint import endpoint_addresses
from serving.triton.repository import ModelRepository
from serving.triton.server import TritonServer, wheel_folder
from terrafine.cli.main import app
from terrafine.errors import ModelError, ServingError, SpecError
from terrafine.export import Release
from tests.exported import small_release
from tests.processes import command, family, living
from tests.scenes import make_project

Releases = tuple[Release, Release]


def terrafine(*arguments: object, code: int = 0) -> Any:
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return json.loads(done.output)


def test_release_is_deployed_promoted_and_rolled_back_from_the_command_line(
    triton_server: TritonServer, releases: Releases, tmp_path: Path
) -> None:
    first, second = releases
    servers = ("--url", triton_server.grpc_url, "--repository", triton_server.repository)
    assert terrafine("status", *servers, code=4)["champion"] is None
    edited = shutil.copytree(first.folder, tmp_path / "edited")
    with (edited / "canary.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(ModelError, match=r"canary\.safetensors: the file was damaged or edited"):
        terrafine("deploy", edited, *servers)
    assert not list(Path(triton_server.repository).glob("landcover*/*"))
    done = terrafine("deploy", first.folder, *servers, "--promote")
    assert (done["version"], done["release"]) == (1, first.digest)
    assert done["canary"][0]["exact"]
    done = terrafine("deploy", second.folder, *servers)
    assert (done["version"], done["champion"]) == (2, None)
    found = terrafine("status", *servers)
    assert (found["champion"]["version"], found["candidate"]) == (1, 2)
    with pytest.raises(ServingError, match=f"candidate is release {second.digest[:12]}"):
        terrafine("promote", *servers, "--release", first.digest)
    done = terrafine("promote", *servers, "--release", second.digest)
    assert done["release"] == second.digest
    done = terrafine("rollback", *servers)
    assert (done["version"], done["away"]) == (1, [])
    with pytest.raises(ServingError, match="no champion to go back to"):
        terrafine("rollback", *servers)
    triton_server.stop()
    found = terrafine("status", *servers, code=4)
    assert found["servers"][0]["live"] is False
    with pytest.raises(ServingError, match=f"{triton_server.grpc_url}: does not answer"):
        terrafine("deploy", second.folder, *servers)
    assert not list(Path(triton_server.repository).glob("landcover-candidate/*"))


def test_spec_says_where_its_release_is_served_and_options_how_a_folder_is(
    triton_server: TritonServer, releases: Releases, tmp_path: Path
) -> None:
    project = make_project(tmp_path)
    shutil.copytree(releases[0].folder, project.root / "champion")
    where = {"server": triton_server.grpc_url, "repository": triton_server.repository}
    # windows of 64 pixels, as the model takes
    project.change_spec(champion="champion", map={"core": 32, "halo": 16}, serve=where)
    run = ("--workdir", project.root / "run")
    terrafine("adopt", project.spec, *run)
    done = terrafine("deploy", project.spec, *run, "--promote")
    assert (done["name"], done["champion"]["version"]) == ("landcover", 1)

    servers = ("--url", triton_server.grpc_url, "--repository", triton_server.repository)
    folder = small_release(tmp_path / "both", variants=("fp32", "fp16")).folder
    with pytest.raises(SpecError, match=r"deploy --name: .*'Zion Park'"):
        terrafine("deploy", folder, *servers, "--name", "Zion Park")
    terrafine("deploy", folder, *servers, "--name", "zion", "--variant", "fp16", "--promote")
    assert terrafine("status", *servers, "--name", "zion")["champion"]["version"] == 1
    served = ModelRepository(triton_server.repository, "zion").served()
    assert served is not None
    assert served.variant == "fp16"
    with pytest.raises(ModelError, match="holds no int8 graph"):
        terrafine("deploy", project.spec, *run, "--variant", "int8")


def test_place_of_the_models_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="no model repository: give --repository"):
        terrafine("status", "--url", "grpc://127.0.0.1:1")
    with pytest.raises(ServingError, match="is no address of a Triton server"):
        terrafine("status", "--url", "http://127.0.0.1:1", "--repository", tmp_path)
    with pytest.raises(ModelError, match="no model release here"):
        terrafine("deploy", tmp_path, "--repository", tmp_path)


def test_name_of_several_servers_is_all_of_them() -> None:
    hosts = {"triton": ["10.0.0.2", "10.0.0.1"], "one": ["10.0.0.9"]}

    def resolve(host: str) -> list[str]:
        if host not in hosts:
            raise socket.gaierror
        return hosts[host]

    assert endpoint_addresses("grpc://triton:8001,one:81,away:1", resolve) == [
        "10.0.0.1:8001",
        "10.0.0.2:8001",
        "one:81",
        "away:1",
    ]


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until it is told to stop, which it then does in order."""
    program = Path(sys.executable).with_name("terrafine")
    process = subprocess.Popen(
        [program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def metrics(port: int) -> dict[str, float]:
    """Name of each of its metrics, without labels -> value."""
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        samples = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name.partition("{")[0]: float(value) for name, value in samples}
    return {}


def wait_for(metric: str, value: float, port: int) -> dict[str, float]:
    deadline = time.monotonic() + 60
    while (found := metrics(port)).get(f"terrafine_serving_{metric}") != value:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_server_runs_until_stopped_and_the_watch_heals_it_and_tells_prometheus(
    releases: Releases, tmp_path: Path
) -> None:
    try:
        wheel_folder()
    except ServingError as error:
        pytest.skip(str(error))
    repository, (http, grpc, triton, watching) = tmp_path / "models", free_ports(4)
    ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", triton)
    servers = ("--url", f"grpc://127.0.0.1:{grpc}", "--repository", repository)
    with running("serve", repository, *ports, "--every", 3600) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(f"grpc://127.0.0.1:{grpc} ")
        terrafine("deploy", releases[0].folder, *servers, "--promote")
        with running("watch", *servers, "--every", 1, "--metrics-port", watching):
            found = wait_for("canary_passed", 1, watching)
            assert abs(found["terrafine_serving_looked_timestamp_seconds"] - time.time()) < 600
            stubs = [pid for pid in family(server.pid) if "model.onnx" in command(pid)]
            for pid in stubs:
                os.kill(pid, signal.SIGKILL)
            found = wait_for("healed_total", 1, watching)
            assert found["terrafine_serving_champion_version"] == 1
            wait_for("canary_passed", 1, watching)
        with urllib.request.urlopen(f"http://127.0.0.1:{triton}/metrics") as answer:
            assert "nv_inference_request_success" in answer.read().decode()
        pids = family(server.pid)
    assert not living(pids, seconds=10)
