"""A real Triton for tests, over a model repository of the test's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from serving.triton.endpoint import Endpoint, endpoint_addresses
from serving.triton.lifecycle import Lifecycle
from serving.triton.repository import ModelRepository
from serving.triton.server import TritonServer, wheel_folder
from terrafine.errors import ServingError
from terrafine.export import Release
from terrafine.spec import ServeSpec
from tests.exported import small_release

# one thread: tests share the machine
SERVE = ServeSpec(threads=1, canary_class_agreement=1, canary_probability_error=0)


@contextmanager
def running_triton(
    repository: str | Path,
    *,
    load: Sequence[str] = (),
    options: Sequence[str] = (),
    folder: Path | None = None,
) -> Iterator[TritonServer]:
    """A server over ``repository``; the test is skipped only where there is no wheel.

    It is killed in the end: an orderly end takes seconds, and has tests of its own.
    """
    try:
        wheel_folder()
    except ServingError as error:
        pytest.skip(f"{error}: no real Triton is tested")
    with TritonServer(repository, load=load, options=options, folder=folder) as server:
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
def triton_server(tmp_path: Path) -> Iterator[TritonServer]:
    """A server with nothing loaded over the empty folder ``tmp_path / "repository"``.

    It loads ``landcover`` whenever it is started again.
    """
    with running_triton(
        tmp_path / "repository", load=[SERVE.name], folder=tmp_path / "triton"
    ) as server:
        yield server


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, Release]:
    """Two releases of one window shape that answer differently."""
    folder = tmp_path_factory.mktemp("releases")
    first, second = (small_release(folder / str(seed), seed=seed) for seed in (0, 1))
    return first, second


@contextmanager
def lifecycle(*servers: TritonServer, name: str = SERVE.name) -> Iterator[Lifecycle]:
    """The lifecycle of a model on servers of one repository."""
    with ExitStack() as stack:
        endpoints = [
            stack.enter_context(Endpoint(address, seconds=60))
            for server in servers
            for address in endpoint_addresses(server.grpc_url)
        ]
        yield Lifecycle(ModelRepository(servers[0].repository, name), endpoints)


def serve_release(server: TritonServer, release: Release, spec: ServeSpec = SERVE) -> int:
    """Make a release the champion of ``spec.name``; its version."""
    with lifecycle(server, name=spec.name) as versions:
        versions.deploy(release, spec)
        return versions.promote().version
