"""A real Prometheus scrapes a real training, a real map through a real Triton, and the watch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from terrafine import telemetry
from terrafine.errors import RasterError
from terrafine.export import Release
from terrafine.progress import progress
from terrafine.stages import ENGINE, Job
from terrafine.status import Record, StageStatus, recorded
from tests.integration.test_triton_cli import free_ports
from tests.monitoring import TRITON, own_metrics, queries, rules
from tests.scenes import Project, make_project
from tests.triton import SERVE, running_triton, serve_release
from tests.unit.training_scene import run, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# no RayJob, no failing request, no unreadable folder and nothing to heal are here
NOT_HERE = (
    "terrafine_rayjob_",
    "terrafine_mapping_failed_tries_total",
    "terrafine_run_unreadable",
    "terrafine_serving_failed_tries_total",
    "terrafine_serving_healed_total",
)


@dataclass(frozen=True)
class Prometheus:
    """A server that scrapes five times a second."""

    port: int
    since: float

    def get(self, path: str, **parameters: object) -> Any:
        text = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}/api/v1/{path}?{text}", timeout=30
        ) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str) -> list[dict[str, Any]]:
        """What the expression gave at any time since the start; raises where it is none."""
        # as often as it scrapes: what is gone is not seen a second later
        spread = {"start": self.since, "end": time.time(), "step": 0.2}
        return list(self.get("query_range", query=expression, **spread)["result"])

    def most(self, expression: str) -> float:
        values = [float(v) for series in self.series(expression) for _, v in series["values"]]
        return max(values, default=0.0)

    def alerts(self) -> dict[str, str]:
        """Alert -> "inactive", "pending" or "firing"."""
        groups = self.get("rules")["groups"]
        for rule in (rule for group in groups for rule in group["rules"]):
            assert rule["health"] != "err", rule
        return {rule["name"]: rule["state"] for group in groups for rule in group["rules"]}


@contextlib.contextmanager
def running(folder: Path, targets: dict[str, int]) -> Iterator[Prometheus]:
    """Over our rules and these jobs (name -> port); the test skips where there is none."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus here (apt-get install prometheus): nothing is scraped")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules()["spec"]))
    settings = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for job, port in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    (port,) = free_ports(1)
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                program, f"--web.listen-address=127.0.0.1:{port}",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        found = Prometheus(port, time.time())
        wait_for(lambda: found.get("status/runtimeinfo"), "Prometheus starts")
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def wait_for(what: Callable[[], object], says: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if what():
                return
        assert time.monotonic() < deadline, f"not in time: {says}"
        time.sleep(0.1)


@contextlib.contextmanager
def terrafine(*arguments: object, **variables: object) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, with these in its environment, stopped at the end."""
    program = Path(sys.executable).with_name("terrafine")
    process = subprocess.Popen(
        [program, *map(str, arguments)],
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def mapped_project(root: Path, release: Release, server: str) -> Project:
    """A scene of 49 shards, to be mapped with a released model that a server has."""
    root.mkdir()
    project = make_project(root, size=384)
    shutil.copytree(release.folder, root / "champion")
    places = {"predictor": "triton", "server": server}
    cut = {"core": 32, "halo": 16, "shard": 64, "wave": 4, "enhance": {"block": 32}}
    project.change_spec(champion="champion", map={**places, **cut})
    return project


@dataclass(frozen=True)
class Seen:
    """What there was to see, and who saw it."""

    prometheus: Prometheus
    map: dict[str, Any]


@pytest.fixture(scope="module")
def seen(
    tmp_path_factory: pytest.TempPathFactory, releases: tuple[Release, Release]
) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("seen")
    runs = folder / "runs"
    (mapping, watching) = free_ports(2)
    registry = CollectorRegistry()
    with contextlib.ExitStack() as stack:
        triton = stack.enter_context(
            running_triton(folder / "models", load=[SERVE.name], folder=folder / "triton")
        )
        training = stack.enter_context(telemetry.serve(0, registry))
        ports = {"triton": int(triton.metrics_url.rsplit(":", 1)[1].split("/")[0])}
        ports |= {"training": training, "map": mapping, "watch": watching}
        prometheus = stack.enter_context(running(folder, ports))
        serve_release(triton, releases[0])
        servers = ("--url", triton.grpc_url, "--repository", triton.repository)
        where = ("--runs", runs, "--metrics-port", watching, "--every", 1)
        stack.enter_context(terrafine("watch", *servers, *where))
        watched = "terrafine_serving_champion_version"
        wait_for(lambda: prometheus.series(watched), "the watch is there before the map begins")

        project = mapped_project(folder / "project", releases[0], triton.grpc_url)
        command = ("map", project.spec, "-w", runs / "zion", "--json")
        # as the pods of a RayJob have it
        mapper = stack.enter_context(terrafine(*command, TERRAFINE_RUN_METRICS_PORT=mapping))
        metrics = telemetry.TrainingMetrics("small/train", registry=registry)
        with at_work(runs / "small", "train"), progress("train", total=4, unit="step") as task:
            run(folder / "training", model=tiny_model(), epochs=2, observer=metrics)
            task.advance()
            task.advance()
            left = "terrafine_stage_seconds_left{run='small'}"
            wait_for(lambda: prometheus.series(left), "the stage's status is read")
        with at_work(runs / "small", "gate") as record:
            record.finish({"decision": "promote"}, 1.0)
        broken = make_project(folder)
        (broken.root / "scene.tif").write_text("no raster")
        with pytest.raises(RasterError):
            ENGINE.run(Job.open(broken.spec, data=None, workdir=runs / "broken"), "label")
        said, errors = mapper.communicate(timeout=200)
        assert mapper.returncode == 0, errors
        yield Seen(prometheus, json.loads(said)["metrics"])


@contextlib.contextmanager
def at_work(workdir: Path, stage: str) -> Iterator[Record]:
    """A stage that this process has in hand."""
    (workdir / stage).mkdir(parents=True)
    begun = StageStatus.begun(stage, "digest", serves=SERVE.name, workers=1)
    with recorded(workdir, begun) as record:
        yield record


def test_it_sees_the_run_the_training_and_the_servers_as_they_are(seen: Seen) -> None:
    def most(metric: str, **labels: str) -> float:
        wanted = ",".join(f'{name}="{value}"' for name, value in labels.items())
        return seen.prometheus.most(f"{metric}{{{wanted}}}")

    assert most("terrafine_mapping_shards_planned") == seen.map["shards"] > 40
    assert 0 < most("terrafine_mapping_shards_done") <= seen.map["shards"]
    assert 0 < most("terrafine_mapping_pixels_total", kind="mapped") <= seen.map["pixels_mapped"]
    assert 0 < most("terrafine_mapping_shards_uncommitted") <= most("terrafine_mapping_wave_shards")
    assert most("terrafine_mapping_commit_seconds_count") > 0
    assert most("terrafine_training_steps_total", run="small/train") == 4
    assert most("terrafine_serving_champion_version", model=SERVE.name) == 1
    assert most("terrafine_serving_canary_passed", model=SERVE.name) == 1
    assert most("terrafine_serving_request_seconds_count", model=SERVE.name) > 0
    assert most("terrafine_serving_pixels_total", model=SERVE.name) > 0
    assert most("terrafine_serving_server_windows", model=SERVE.name) > 0
    assert most("nv_inference_request_success", model=SERVE.name) > seen.map["shards"]
    assert most("terrafine_stage_running", run="zion", stage="map") == 1
    assert most("terrafine_stage_done_ratio", run="small", stage="train") == 0.5
    assert most("terrafine_disk_free_bytes") > 0


def test_every_metric_that_rules_and_dashboards_ask_for_was_scraped(seen: Seen) -> None:
    names = set(seen.prometheus.get("label/__name__/values"))
    own = {name for name in own_metrics() if not name.startswith(NOT_HERE)}
    assert own <= names
    for metric, labels in TRITON.items():
        assert metric in names
        for series in seen.prometheus.series(f'{metric}{{model="{SERVE.name}"}}'):
            assert labels <= series["metric"].keys()


def test_every_query_of_a_dashboard_that_has_its_metrics_gives_something(seen: Seen) -> None:
    names = set(seen.prometheus.get("label/__name__/values"))
    shown = [query for query in queries() if ":" in query.place]
    here = [query for query in shown if {metric for metric, _ in query.metrics()} <= names]
    assert len(here) > 0.7 * len(shown)
    assert [query.place for query in here if not seen.prometheus.series(query.text)] == []


def test_a_failed_stage_fires_a_model_not_yet_promoted_waits_and_nothing_else_does(
    seen: Seen,
) -> None:
    wait_for(
        lambda: seen.prometheus.alerts()["TerrafineStageFailed"] == "firing", "the failure is told"
    )
    states = seen.prometheus.alerts()
    others = states.keys() - {"TerrafineStageFailed", "TerrafineChampionOutdated"}
    assert states["TerrafineChampionOutdated"] == "pending"
    # a disk of this machine may be full
    others -= {"TerrafineDiskNearlyFull"}
    assert {states[name] for name in others} == {"inactive"}
