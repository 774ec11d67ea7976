"""``terrafine map`` as a person uses it: with workers, looked at while it runs and afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner, Result

from terrafine.cli.main import app
from terrafine.export import Release
from terrafine.mapping import MapStore
from tests.scenes import Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def project(tmp_path: Path, champion_release: Release) -> Project:
    """A scene and a released model for it."""
    made = make_project(tmp_path)
    shutil.copytree(champion_release.folder, made.root / "champion")
    made.change_spec(champion="champion", labels=None, assess=None)
    return made


def terrafine_map(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["map", *map(str, arguments)])


def test_a_map_by_two_workers_is_seen_growing_and_bears_a_second_look(project: Project) -> None:
    workdir = project.root / "run"
    alone = terrafine_map(project.spec, "-w", workdir, "--json")
    assert alone.exit_code == 0, alone.output
    (run,) = MapStore(workdir / "map.icechunk").runs()
    accounts = MapStore(workdir / "map.icechunk").accounts(run)

    project.change_spec(map={"workers": 2, "storage": str(project.root / "elsewhere")})
    done = subprocess.run(
        [Path(sys.executable).with_name("terrafine"), "map", "run", project.spec, "-w", workdir,
         "--json", "--json-progress"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["run"] == run, "workers and place change no digest"
    store = MapStore(project.root / "elsewhere")
    assert store.accounts(run) == accounts, "and no pixel"
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    shown = [event for event in map(json.loads, lines) if event.get("name") == "map"]
    assert [event["done"] for event in shown][-1] == shown[0]["total"] == len(accounts)
    assert max(event["figures"]["in_flight"] for event in shown if "figures" in event) >= 2

    state = terrafine_map("status", project.spec, "--json")
    (found,) = json.loads(state.stdout)["runs"]
    assert (found["planned"], found["done"]) == (len(accounts), len(accounts))
    assert found["mapped"] == metrics["pixels_mapped"]
    assert "100.0%" in terrafine_map("status", store.path).stdout

    again = terrafine_map("verify", project.spec, "-w", workdir, "--shards", "2", "--json")
    assert again.exit_code == 0, again.output
    assert [shard["differs"] for shard in json.loads(again.stdout)] == [[]] * min(2, len(accounts))

    session = store._repository.writable_session(run)
    (zone,) = store.zones()
    array = zarr.open_group(session.store, path=zone, mode="r+")["landcover"]
    array[:] = np.zeros(array.shape, np.uint8)
    session.commit("someone was here")
    assert terrafine_map("verify", project.spec, "-w", workdir).exit_code == 4
    assert "MB freed" in terrafine_map("gc", store.path).stdout


def test_the_second_of_two_maps_into_one_folder_is_refused(project: Project) -> None:
    """While the first one holds the store, whatever the second would write."""
    workdir = project.root / "run"
    begun = terrafine_map(project.spec, "-w", workdir)
    assert begun.exit_code == 0, begun.output
    store = MapStore(workdir / "map.icechunk")
    plans = {"model": "m", "spec": "s", "scenes": ("scene",), "mapping": {}}
    with store.run([], **plans):
        project.change_spec(map={"enhance": {"block": 64, "threshold": 99}})
        second = terrafine_map(project.spec, "-w", workdir)
    assert "another process is writing to this map store" in str(second.exception)
    assert terrafine_map(project.spec, "-w", workdir).exit_code == 0
