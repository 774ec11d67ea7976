"""The compiled pipeline is what a cluster gets: it changes only when someone means it to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from pipelines.land_cover_map import land_cover_map
from terrafine.stages import ENGINE

GOLDEN = Path(__file__).with_name("land_cover_map.yaml")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compiler.Compiler().compile(land_cover_map, str(path))
    return path.read_text()


@pytest.fixture(scope="module")
def pipeline(compiled: str) -> dict[str, Any]:
    return next(yaml.safe_load_all(compiled))


def test_the_compiled_pipeline_is_the_committed_one(compiled: str) -> None:
    assert compiled == GOLDEN.read_text(), "after a change that is meant: `make golden`"


def test_every_stage_is_in_the_pipeline(pipeline: dict[str, Any]) -> None:
    executors = pipeline["deploymentSpec"]["executors"].values()
    commands = " ".join(" ".join(e["container"]["command"]) for e in executors)
    missing = [name for name in ENGINE.stages if f'run_stage("{name}"' not in _one_line(commands)]
    assert not missing


def test_the_gate_has_both_branches(pipeline: dict[str, Any]) -> None:
    conditions = [name for name in pipeline["components"] if name.startswith("comp-condition-")]
    branches = [
        sorted(pipeline["components"][c].get("dag", {}).get("tasks", {})) for c in conditions
    ]
    assert ["export", "map-scenes", "publish"] in branches
    assert ["refuse"] in branches


def test_kfp_caches_no_step(compiled: str) -> None:
    """Its key is the spec's text and paths: changed pixels would get yesterday's verdict."""
    assert "enableCache: true" not in compiled


def test_nothing_is_installed_when_a_step_starts(compiled: str) -> None:
    assert "pip install" not in compiled


def test_the_form_in_the_ui_explains_its_fields(pipeline: dict[str, Any]) -> None:
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"spec", "data", "workdir"}
    assert all(p["description"] for p in parameters.values())


def _one_line(text: str) -> str:
    return text.replace("(\n        ", "(")
