"""A running map as it is seen: in a terminal, by machines, by Prometheus."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapWatch, ShardKey, ShardReceipt, in_sequence, map_all
from terrafine.mapping.terminal import draw_shards
from terrafine.progress import EVENTS_VARIABLE
from terrafine.telemetry import MappingMetrics, RequestRecord, VersionStatistics
from tests.imagery import QuickPredictor, map_two_scenes, small_spec, two_scenes


@dataclass
class Served(QuickPredictor):
    """A model behind servers that do not answer every time."""

    failed: dict[str, int] = field(default_factory=dict)
    requests: list[RequestRecord] = field(default_factory=list)
    counted: tuple[VersionStatistics, ...] = ()

    def answered(self) -> list[RequestRecord]:
        records, self.requests = self.requests, []
        return records

    @property
    def failed_tries(self) -> dict[str, int]:
        return dict(self.failed)

    def queue_seconds(self) -> float:
        return 0.25

    def give_up(self) -> None:
        self.failed["given_up"] = 1


def metrics() -> tuple[CollectorRegistry, MappingMetrics]:
    registry = CollectorRegistry()
    return registry, MappingMetrics(wave=3, registry=registry)


def terminal(width: int, height: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height)


def shards(rows: int, cols: int, zone: str = "epsg32650") -> list[ShardKey]:
    return [(zone, Window(64 * r, 64 * c, 64, 64)) for r in range(rows) for c in range(cols)]


def drawn(planned: list[ShardKey], done: list[ShardKey], width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    with console.capture() as seen:
        console.print(draw_shards(planned, done, width=width, height=height))
    return [line.rstrip() for line in seen.get().splitlines()]


def test_shards_are_drawn_where_they_lie() -> None:
    planned = [key for key in shards(2, 3) if key[1].row or key[1].col]
    done = [key for key in planned if key[1].row]
    title, *lines = drawn(planned, done, 80, 24)
    assert title == "epsg32650  3/5"
    assert lines == ["  ····", "██████"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 20), (200, 50)])
def test_a_country_fits_the_terminal(width: int, height: int) -> None:
    planned = [key for zone in range(11) for key in shards(90, 25, f"epsg{32643 + zone}")]
    lines = drawn(planned, planned[: len(planned) // 2], width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert any("█" in line for line in lines)
    assert any("·" in line for line in lines)


def test_a_shard_that_was_begun_is_seen_in_a_cell_of_many_and_none_is_full_too_early() -> None:
    planned = shards(64, 64)
    one = "".join(drawn(planned, planned[:1], 60, 20)[1:])
    assert "░" in one
    assert "█" not in one
    rest = "".join(drawn(planned, planned[1:], 60, 20)[1:])
    assert rest.count("▓") == 2, "all but one shard of a cell"


def map_watched(folder: Path, watch: MapWatch, predictor: Served) -> None:
    def run(keys: list[ShardKey], write: object) -> Iterator[ShardReceipt]:
        watch.in_flight(2)
        for number, receipt in enumerate(in_sequence(keys, write)):
            if number == 4:
                watch.failed_tries("worker", {"unavailable": 3})
                watch.lost_worker()
            yield receipt

    imagery, spec = two_scenes(), small_spec()
    map_all(
        folder / "map", {imagery.zone: imagery}, lambda: predictor,
        spec=spec, legend=SEVEN, scenes=("upper", "lower"),
        model_digest="m", spec_digest="s", run=run, observer=watch,
    )  # fmt: skip


def test_a_terminal_shows_shards_speed_time_left_workers_retries_and_queue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    console, (registry, gauges) = terminal(100, 30), metrics()
    predictor = Served(small_spec().window, failed={"queue_full": 2})
    with MapWatch(gauges, console=console) as watch:
        map_watched(tmp_path, watch, predictor)
        watch.look()
        assert watch.now.failed_tries == 5
    seen = console.file.getvalue()  # type: ignore[attr-defined]
    for shown in ("█", "20 of 20 shards", "100.0%", "Mpixel/s", "left 0:00:00", "in flight 2",
                  "lost workers 1", "retries 5", "queue ms 250"):  # fmt: skip
        assert shown in seen, shown
    assert "3 requests to the model servers failed and were sent again (3 unavailable)" in (
        caplog.text
    )
    assert "2 queue full" in caplog.text, "what was not said in time is said at the end"

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"terrafine_mapping_{name}", labels)

    assert value("failed_tries_total", cause="unavailable") == 3
    assert value("failed_tries_total", cause="queue_full") == 2
    assert value("server_queue_seconds") == 0.25
    assert value("shards_in_flight") == 2
    assert value("lost_workers_total") == 1


def request(seconds: float, *, version: int = 2) -> RequestRecord:
    """One that a server answered, of two windows."""
    return RequestRecord(
        model="landcover", version=str(version), shared_memory=False, windows=2, pixels=5000,
        seconds=seconds, sent=40_000, received=15_000, tries=1,
    )  # fmt: skip


def test_a_map_on_model_servers_keeps_the_metrics_of_all_its_workers_requests() -> None:
    registry = CollectorRegistry()
    counted = VersionStatistics(
        server="a:8001", model="landcover", version="2", requests=7, failures=1, windows=14,
        executions=5, seconds=2.0, queue_seconds=0.5, compute_seconds=1.0,
    )  # fmt: skip
    predictor = Served(small_spec().window, requests=[request(0.2)], counted=(counted,))
    with MapWatch(MappingMetrics(wave=3, registry=registry, model="landcover")) as watch:
        watch.served(predictor)
        watch.look()
        watch.look()
        watch.answered([request(2.0), request(20.0)])
        watch.failed_tries("worker", {"unavailable": 2})
        watch.failed_tries("worker", {"unavailable": 3})

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(
            f"terrafine_serving_{name}", {"model": "landcover", **labels}
        )

    assert value("request_seconds_count", transport="grpc") == 3, "each is counted once"
    assert value("request_seconds_bucket", transport="grpc", le="3.0") == 2
    assert value("pixels_total") == 15_000
    assert value("message_bytes_total", direction="sent") == 120_000
    assert value("failed_tries_total", cause="unavailable") == 3
    assert value("answering_version") == 2
    assert value("server_windows", server="a:8001", version="2") == 14


def test_machines_read_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events"))
    with MapWatch(metrics()[1]) as watch:
        map_two_scenes(tmp_path / "map", observer=watch)
        last = watch.now
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [event["name"] for event in events] == ["map"] * len(events)
    figures = events[-1]["figures"]
    assert figures["done"] == figures["shards"] == last.shards == 20
    assert figures["mpixel_per_s"] > 0
    assert figures["queue_seconds"] is None, "no server is asked"
