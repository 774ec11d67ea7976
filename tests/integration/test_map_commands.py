"""``terrafine map`` as a person uses it: with workers, looked at while it runs and afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from terrafine.mapping import MapStore
from terrafine.stages import ENGINE, Job
from tests.scenes import Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def terrafine(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("terrafine"), *map(str, arguments)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """A project with an exported model, and its work directory."""
    project = make_project(tmp_path_factory.mktemp("exported"))
    project.change_spec(training={"epochs": 1, "preliminary_epochs": 1})
    project.change_spec(filter={"min_agreement": 0.0}, gate={"min_overall_accuracy": 0.0})
    workdir = project.root / "run"
    job = Job.open(project.spec, data=project.root, workdir=workdir)
    for name in ("label", "train-preliminary", "filter", "train", "prune", "assess", "gate"):
        ENGINE.run(job, name)
    ENGINE.run(job, "export")
    return project, workdir


def test_a_map_by_two_workers_is_seen_growing_and_bears_a_second_look(exported) -> None:
    project, workdir = exported
    alone = terrafine("map", project.spec, "-w", workdir, "--json")
    assert alone.returncode == 0, alone.stderr
    (run,) = MapStore(workdir / "map.icechunk").runs()
    accounts = MapStore(workdir / "map.icechunk").accounts(run)

    project.change_spec(map={"workers": 2, "storage": str(project.root / "elsewhere")})
    done = terrafine("map", "run", project.spec, "-w", workdir, "--json", "--json-progress")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["run"] == run, "workers and place change no digest"
    store = MapStore(project.root / "elsewhere")
    assert store.accounts(run) == accounts, "and no pixel"
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    shown = [event for event in map(json.loads, lines) if event.get("name") == "map"]
    assert [event["done"] for event in shown][-1] == shown[0]["total"] == len(accounts)

    state = terrafine("map", "status", project.spec, "--json")
    (found,) = json.loads(state.stdout)["runs"]
    assert (found["planned"], found["done"]) == (len(accounts), len(accounts))
    assert found["mapped"] == metrics["pixels_mapped"]
    assert "100.0%" in terrafine("map", "status", store.path).stdout

    again = terrafine("map", "verify", project.spec, "-w", workdir, "--shards", "2", "--json")
    assert again.returncode == 0, again.stderr
    assert [shard["differs"] for shard in json.loads(again.stdout)] == [[]] * min(2, len(accounts))

    session = store._repository.writable_session(run)
    (zone,) = store.zones()
    array = zarr.open_group(session.store, path=zone, mode="r+")["landcover"]
    array[:] = np.zeros(array.shape, np.uint8)
    session.commit("someone was here")
    assert terrafine("map", "verify", project.spec, "-w", workdir).returncode == 4
    assert "MB freed" in terrafine("map", "gc", store.path).stdout
