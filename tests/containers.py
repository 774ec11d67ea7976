"""A Docker daemon of the tests' own, and terrafine's image built in it from a base made here."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

BASE = "docker.io/library/python:3.11-slim-bookworm"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
# what pip and apt say of a network that is not there
_UNREACHABLE = (
    "NewConnectionError",
    "SSLError",
    "name resolution",
    "Could not connect to",
    "timed out",
)


@dataclass(frozen=True)
class Docker:
    """A running daemon: its address (DOCKER_HOST) and a client of it."""

    address: str
    client: docker.DockerClient


@contextmanager
def docker_daemon(folder: Path) -> Iterator[Docker]:
    """A dockerd that nobody else uses; the test is skipped where none can run."""
    missing = [tool for tool in ("dockerd", "debootstrap") if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        reason = f"{' and '.join(missing)} not installed" if missing else "not root"
        pytest.skip(f"no image can be built here ({reason}): the image is not tested")
    folder.mkdir(parents=True)
    address, log = f"unix://{folder / 'sock'}", folder / "log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            [
                "dockerd", "--iptables=false", "--bridge=none", "--storage-driver=overlay2",
                "--data-root", folder / "data", "--exec-root", folder / "exec",
                "--pidfile", folder / "pid", "--host", address,
            ],
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        yield Docker(address, _answering(daemon, address, log))
    finally:
        daemon.terminate()
        daemon.wait(60)
        # a namespace that it leaves mounted
        subprocess.run(["umount", folder / "exec/netns/default"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _answering(daemon: subprocess.Popen[bytes], address: str, log: Path) -> docker.DockerClient:
    for _ in range(300):
        try:
            return docker.DockerClient(address, timeout=900)
        except docker.errors.DockerException:
            if daemon.poll() is not None:
                said = log.read_text(errors="replace").strip().splitlines()[-1:]
                pytest.skip(f"no Docker daemon runs here ({said}): the image is not tested")
            time.sleep(0.2)
    raise TimeoutError(f"dockerd does not answer: {log.read_text(errors='replace')[-2000:]}")


def make_base(client: docker.DockerClient, folder: Path) -> None:
    """What python:3.11-slim-bookworm holds, made by debootstrap, under its name.

    It trusts what this machine trusts, so that a build reaches the package index as this machine
    does.
    """
    root, packed = folder / "root", folder / "base.tar"
    packages = "python3.11,python3-pip,python3-venv,ca-certificates"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    if made.returncode:
        said = (made.stdout + made.stderr).strip().splitlines()[-1:]
        pytest.skip(f"no base image can be made here ({said}): the image is not tested")
    shutil.copy(Path("/") / CERTIFICATES, root / CERTIFICATES)
    subprocess.run(["tar", "-C", root, "-cf", packed, "."], check=True, timeout=300)
    shutil.rmtree(root)
    name, tag = BASE.split(":")
    client.api.import_image_from_file(
        str(packed), repository=name, tag=tag, changes=[f"ENV PIP_CERT=/{CERTIFICATES}"]
    )
    packed.unlink()


def build_image(
    client: docker.DockerClient, context: Path, tag: str, arguments: dict[str, str]
) -> None:
    """The Dockerfile of ``context``; the test is skipped where a build does not reach the index."""
    try:
        client.images.build(
            path=str(context), tag=tag, network_mode="host", rm=True, forcerm=True,
            buildargs=arguments,
        )  # fmt: skip
    except docker.errors.BuildError as error:
        said = "".join(str(line.get("stream", "")) for line in error.build_log)
        if any(sign in said for sign in _UNREACHABLE):
            pytest.skip(f"a build reaches no package index here ({said[-200:]}): no image tested")
        raise AssertionError(said[-4000:]) from error


@contextmanager
def served_wheels() -> Iterator[dict[str, str]]:
    """Build arguments that lead a build to the folder of wheels that this machine's pip reads."""
    folder = Path(os.environ.get("PIP_FIND_LINKS", ""))
    if not folder.is_absolute():
        yield {}
        return
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"PIP_FIND_LINKS": f"http://127.0.0.1:{server.server_port}/"}
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
