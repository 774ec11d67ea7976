"""``terrafine pipeline submit`` against an HTTP server that answers as the KFP API does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import PipelineError
from terrafine.spec import parse_spec
from tests.scenes import SPEC


@dataclass
class Kubeflow:
    """What the API was asked, and what it says to a new run."""

    url: str = ""
    posted: dict[str, Any] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    refusal: tuple[int, dict[str, Any]] | None = None


@contextmanager
def kubeflow() -> Iterator[Kubeflow]:
    api = Kubeflow()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer(200, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kind = self.path.rsplit("/", 1)[1]
            api.posted[kind] = body
            api.tokens.add(self.headers.get("Authorization"))
            if kind == "runs" and api.refusal is not None:
                self.answer(*api.refusal)
            else:
                self.answer(200, {f"{kind[:-1]}_id": f"{kind}-1"})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


def submit(spec: Path, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(
        app, ["pipeline", "submit", str(spec), "--json", *options], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def test_a_run_is_created_with_the_spec_and_the_form_s_fields(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRAFINE_KFP_TOKEN", "secret")
    with kubeflow() as api:
        shown = submit(
            spec, "--host", api.url, "--region", "zone.gpkg", "--release", "2026.1",
            "--data", "/work/data/zion", "--namespace", "maps",
        )  # fmt: skip
    assert shown["url"] == f"{api.url}/#/runs/details/runs-1"
    assert api.tokens == {"Bearer secret"}
    assert api.posted["experiments"]["display_name"] == "terrafine"
    run = api.posted["runs"]
    assert run["display_name"] == "generated"
    assert run["experiment_id"] == "experiments-1"
    assert run["service_account"] == "terrafine-pipeline"
    sent = run["runtime_config"]["parameters"]
    assert (sent["data"], sent["workdir"]) == ("/work/data/zion", "/work/runs/{name}")
    mapped = parse_spec(sent["spec"], where="sent")
    assert (mapped.map.region, mapped.publish.release) == ("zone.gpkg", "2026.1")
    pipeline = run["pipeline_spec"]
    assert pipeline["pipeline_spec"]["pipelineInfo"]["name"] == "national-map"
    assert "kubernetes" in pipeline["platform_spec"]["platforms"], "volumes go along"


def test_a_champion_is_sent_to_map_only(spec: Path) -> None:
    with kubeflow() as api:
        shown = submit(spec, "--host", api.url, "--champion", "releases/2026")
    assert shown["pipeline"] == "map_only"
    sent = api.posted["runs"]["runtime_config"]["parameters"]["spec"]
    assert parse_spec(sent, where="sent").champion == "releases/2026"


def test_what_kubeflow_refuses_is_told_in_its_words(spec: Path) -> None:
    with kubeflow() as api:
        api.refusal = (403, {"message": "user may not create runs\nin namespace maps"})
        with pytest.raises(PipelineError, match=r"refused the run .*may not create runs") as error:
            submit(spec, "--host", api.url)
    assert "\n" not in str(error.value)


def test_a_host_that_is_down_is_named(spec: Path) -> None:
    with kubeflow() as api:
        url = api.url
    with pytest.raises(PipelineError, match=f"{url}: no Kubeflow Pipelines API answers there"):
        submit(spec, "--host", url)


def test_a_wrong_spec_is_not_sent(spec: Path) -> None:
    spec.write_text(yaml.safe_dump({**SPEC, "labells": {}}))
    with kubeflow() as api, pytest.raises(ValueError, match="did you mean 'labels'"):
        submit(spec, "--host", api.url)
    assert not api.posted
