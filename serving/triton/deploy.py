"""A release made champion in one go, as a pipeline does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from serving.triton.endpoint import Endpoint, endpoint_addresses
from serving.triton.lifecycle import Lifecycle
from serving.triton.repository import ModelRepository
from terrafine.export import Release
from terrafine.spec import ServeSpec

# TensorRT compiles for minutes
_SECONDS_TO_LOAD = 600.0


@contextmanager
def lifecycle_on(
    url: str, repository: ModelRepository, *, seconds: float = _SECONDS_TO_LOAD
) -> Iterator[Lifecycle]:
    """The versions of a served model, over connections to every server of ``url``."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(Endpoint(address, seconds=seconds))
            for address in endpoint_addresses(url)
        ]
        yield Lifecycle(repository, servers)


def deploy_release(release: Release, spec: ServeSpec) -> dict[str, int | float | str]:
    """Stage a release on the servers that the spec names, and promote it if its canary passes.

    One that is the champion already, served as the spec has it, and answers everywhere is left
    alone. Returns the figures of it; ServingError where a server does not load it or it does not
    answer as at export: the champion that was serves on then.
    """
    assert spec.server is not None
    assert spec.repository is not None
    with lifecycle_on(spec.server, ModelRepository(spec.repository, spec.name)) as lifecycle:
        if not lifecycle.serves(release, spec):
            lifecycle.deploy(release, spec)
            lifecycle.promote(release.digest)
        found = lifecycle.status()
    assert found.champion is not None
    return {
        "served_as": spec.name,
        "version": found.champion.version,
        "release": found.champion.release,
        "servers": len(found.servers),
        "class_agreement": min(
            (one.canary.class_agreement for one in found.servers if one.canary), default=0.0
        ),
    }
