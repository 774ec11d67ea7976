"""What the watch tells Prometheus is of its latest whole look, and says of when that is."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.triton.endpoint import Endpoint
from serving.triton.lifecycle import Lifecycle, Status
from serving.triton.repository import ModelRepository
from terrafine.cli.serving import _look
from terrafine.errors import ServingError, StorageError
from terrafine.telemetry import ReleaseMetrics


class Away(Endpoint):
    """A server that does not answer, without waiting for it."""

    def live(self) -> bool:
        return False


class Unwritable(Lifecycle):
    """Of a repository where nothing can be healed."""

    def heal(self) -> Status:
        raise StorageError("history.json: cannot write it")


def test_what_cannot_be_healed_is_told_of_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = CollectorRegistry()
    with Away("127.0.0.1:1") as server:
        versions = Unwritable(ModelRepository(str(tmp_path), "landcover"), [server])
        _look(versions, ReleaseMetrics(registry=registry))
    assert "history.json: cannot write it" in capsys.readouterr().err
    labels = {"model": "landcover", "server": server.address}
    assert registry.get_sample_value("terrafine_serving_server_live", labels) == 0


def test_old_figures_can_be_told_and_servers_that_are_gone_are_not_told_of(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    metrics = ReleaseMetrics(registry=registry)

    def value(name: str, **labels: str) -> float | None:
        labels |= {"model": "landcover"}
        return registry.get_sample_value(f"terrafine_serving_{name}", labels)

    with ExitStack() as stack:
        first, second = (stack.enter_context(Away(f"127.0.0.1:{port}")) for port in (1, 2))
        repository = ModelRepository(str(tmp_path), "landcover")
        assert value("looked_timestamp_seconds") is None
        _look(Lifecycle(repository, [first, second]), metrics)
        metrics.healed("landcover", first.address)
        looked = value("looked_timestamp_seconds")
        assert looked is not None
        assert value("server_live", server=first.address) == 0

        _look(Lifecycle(repository, [second]), metrics)
        told = ("server_live", "canary_passed", "canary_class_agreement", "healed_total")
        assert {value(name, server=first.address) for name in told} == {None}
        assert value("canary_passed", server=second.address) == 0
        later = value("looked_timestamp_seconds")
        assert later is not None
        assert later > looked

        (tmp_path / "landcover" / "history.json").write_text("{")
        with pytest.raises(ServingError, match=r"history\.json"):
            _look(Lifecycle(repository, [second]), metrics)
        assert value("looked_timestamp_seconds") == later
