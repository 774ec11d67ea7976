"""What a served model takes and gives, as its server says: checked before a window is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from serving.triton.replicas import Replica, left
from terrafine.errors import ServingError
from terrafine.export.session import INPUT, OUTPUTS, GraphInfo

# Parameters of the configuration, followed by the number of a version (serving.triton.config).
_RELEASE, _GRAPH, _ENGINE = "release.", "graph.", "engine."


@dataclass(frozen=True)
class Contract:
    """What one server's model takes and what its codes mean.

    ``max_batch``: most windows in one request; ``ready``: the versions that answer now;
    ``releases``, ``graphs``, ``engines``: version -> digest of its release, what its graph takes
    and says, and what runs it (``serving.triton.config.engine``; "" where the server says nothing).
    """

    max_batch: int
    ready: frozenset[str]
    releases: Mapping[str, str]
    graphs: Mapping[str, GraphInfo]
    engines: Mapping[str, str]

    @property
    def newest(self) -> str:
        """The version that answers a request that names none."""
        return max(self.ready, key=int)

    def version_of(
        self, release: str, *, engine: str | None = None, kept: str | None = None
    ) -> str | None:
        """The version that serves a release now, run by ``engine`` (default: by any).

        ``kept`` as long as it does, else the newest.
        """
        versions = [
            version
            for version in self.ready
            if self.releases[version] == release and engine in (None, self.engines[version])
        ]
        return kept if kept in versions else max(versions, key=int, default=None)

    @property
    def served(self) -> str:
        """Releases and versions, for an error."""
        return ", ".join(
            f"{described(self.releases[version], self.engines[version])} as version {version}"
            for version in sorted(self.ready, key=int)
        )


def described(release: str, engine: str | None) -> str:
    """A release and what runs it, for an error."""
    return f"{release[:12]} ({engine})" if engine else release[:12]


def difference(ours: GraphInfo, theirs: GraphInfo) -> str | None:
    """Why windows cut for ``ours`` and codes read by it would be wrong with ``theirs``, or None."""
    for what in ("window", "band_names", "scale", "fill"):
        if getattr(ours, what) != getattr(theirs, what):
            return f"{what} {getattr(theirs, what)}, not {getattr(ours, what)}"
    if ours.legend.digest != theirs.legend.digest:
        return (
            f"legend {theirs.legend.name!r} ({', '.join(theirs.legend.names)}), not "
            f"{ours.legend.name!r} ({', '.join(ours.legend.names)})"
        )
    return None


def fetch_contract(replica: Replica, model: str, *, stop: float, most: float) -> Contract:
    """Ask a server what its model takes, until ``stop`` and for at most ``most`` seconds a call.

    ServingError when it is no model that `terrafine deploy` put there; ``grpc.RpcError`` when the
    server or the model is not ready.
    """
    where = f"{replica}: model {model!r}"
    try:
        return read_contract(*_ask(replica, model, stop, most), where=where)
    except ServingError:
        # another version may have taken the place of the only one between the two questions
        return read_contract(*_ask(replica, model, stop, most), where=where)


def read_contract(metadata: Any, config: Any, *, where: str) -> Contract:
    """The contract in a server's ModelMetadataResponse and ModelConfig."""
    said = {key: value.string_value for key, value in config.parameters.items()}
    releases = _by_version(said, _RELEASE)
    graphs = _by_version(said, _GRAPH)
    ready = frozenset(metadata.versions) & set(releases) & set(graphs)
    if not ready:
        raise ServingError(
            f"{where}: its configuration does not say which releases its versions are; name a "
            "model that `terrafine deploy` put there"
        )
    contract = Contract(
        max_batch=max(config.max_batch_size, 1),
        ready=ready,
        releases=releases,
        graphs={
            version: GraphInfo.from_metadata(_object(text, where), where=f"{where} {version}")
            for version, text in graphs.items()
        },
        engines=dict.fromkeys(ready, "") | _by_version(said, _ENGINE),
    )
    graph = contract.graphs[contract.newest]
    inputs = {i.name: (i.datatype, *i.shape) for i in metadata.inputs}
    outputs = {o.name: (o.datatype, *o.shape) for o in metadata.outputs}
    wanted_in = {INPUT: ("UINT16", -1, graph.bands, graph.window, graph.window)}
    wanted_out = dict.fromkeys(OUTPUTS, ("UINT8", -1, graph.window, graph.window))
    if (inputs, outputs) != (wanted_in, wanted_out):
        raise ServingError(
            f"{where}: takes {inputs} and gives {outputs}, but its graph {wanted_in} and "
            f"{wanted_out}; deploy the release again"
        )
    return contract


def _ask(replica: Replica, model: str, stop: float, most: float) -> tuple[Any, Any]:
    asked = service_pb2.ModelMetadataRequest(name=model)
    metadata = replica.stub.ModelMetadata(asked, timeout=left(stop, most))
    wanted = service_pb2.ModelConfigRequest(name=model)
    return metadata, replica.stub.ModelConfig(wanted, timeout=left(stop, most)).config


def _by_version(said: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): text for k, text in said.items() if k.startswith(prefix)}


def _object(text: str, where: str) -> Mapping[str, str]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ServingError(
            f"{where}: its configuration is damaged ({error}); deploy the release again"
        ) from error
