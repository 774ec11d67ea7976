"""What a pipeline's form says becomes a job, or one sentence before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from terrafine.errors import TerrafineError
from terrafine.progress import EVENTS_VARIABLE
from terrafine.spec import AS_IN_SPEC
from terrafine.stages import ENGINE, Job
from terrafine.stages.prepare import prepared
from tests.scenes import Project

NOTHING = {"champion": AS_IN_SPEC, "map.region": AS_IN_SPEC, "publish.release": AS_IN_SPEC}


def prepare(project: Project, spec: str, **overrides: str) -> Job:
    return prepared(
        ENGINE,
        spec,
        data=str(project.root),
        workdir=str(project.root / "runs/{name}"),
        overrides={**NOTHING, **{k.replace("__", "."): v for k, v in overrides.items()}},
    )


def test_the_spec_is_text_or_a_file(project: Project) -> None:
    by_text = prepare(project, project.spec.read_text())
    by_path = prepare(project, f" {project.spec}\n")
    assert by_text == by_path
    assert by_text.spec == Job.open(project.spec, data=None, workdir=None).spec
    assert by_text.workdir == project.root / "runs/generated", "one folder for each name"
    assert not by_text.workdir.exists(), "nothing is made by looking"


def test_a_field_of_the_form_replaces_what_the_spec_says(project: Project) -> None:
    project.change_spec(publish={"release": "2025"})
    assert prepare(project, str(project.spec)).spec.publish.release == "2025"
    job = prepare(project, str(project.spec), publish__release="2026")
    assert job.spec.publish.release == "2026"
    assert job.spec.publish.zooms == 2, "and nothing else"


@pytest.mark.parametrize(
    ("spec", "overrides", "says"),
    [
        ("/gone/spec.yaml", {}, "/gone/spec.yaml: the spec cannot be read"),
        ("name: [", {}, "spec: not valid YAML"),
        ("just words", {}, "a spec is a YAML mapping"),
        (None, {"map__region": "gone.gpkg"}, "gone.gpkg"),
        (None, {"champion": "gone"}, "gone: no model release here"),
        (None, {"publish__release": "run-1"}, "'run-1' means something else"),
    ],
)
def test_what_cannot_work_is_told_at_once(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    spec: str | None,
    overrides: dict[str, str],
    says: str,
) -> None:
    events = project.root / "events"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    with pytest.raises(TerrafineError, match=says) as caught:
        prepare(project, spec or str(project.spec), **overrides)
    assert "\n" not in str(caught.value)
    (event,) = map(json.loads, events.read_text().splitlines())
    assert event == {"stage": "prepare", "state": "failed", "error": str(caught.value)}


def test_a_reference_that_cannot_be_read_is_found_before_the_training(project: Project) -> None:
    Path(project.root / "reference.tif").write_bytes(b"no raster")
    with pytest.raises(TerrafineError, match=r"reference\.tif"):
        prepare(project, str(project.spec))
