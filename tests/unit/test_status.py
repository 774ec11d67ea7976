"""How stages stand, for whoever looks in: while they run, when they fail, when they die."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import LossError, RasterError, StageError
from terrafine.progress import progress
from terrafine.stages import ENGINE, Job
from terrafine.status import Record, StageStatus, read_status, read_statuses, recorded
from terrafine.telemetry import RunMetrics
from tests.scenes import Project


def begun(stage: str = "train", *, workers: int = 1) -> StageStatus:
    return StageStatus.begun(stage, "d" * 64, serves="landcover", workers=workers)


def kept(workdir: Path, stage: str = "train") -> StageStatus:
    found = read_status(workdir / stage / "status.json")
    assert found is not None
    return found


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    (tmp_path / "zion" / "train").mkdir(parents=True)
    return tmp_path / "zion"


def terrafine(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["status", *map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.stdout


def test_a_stage_tells_what_it_has_in_hand_and_how_it_ended(workdir: Path) -> None:
    with recorded(workdir, begun()) as record:
        with progress("train", total=10, unit="step") as task:
            task.advance(loss=0.5)
            record.write()
            doing = kept(workdir).doing
            assert doing is not None
            assert (doing.done, doing.total, doing.unit, doing.shown) == (1, 10, "step", "loss 0.5")
        assert kept(workdir).state == "running"
        record.finish({"epochs": 3}, 12.5)
    done = kept(workdir)
    assert (done.state, done.seconds, done.metrics, done.doing) == (
        "done",
        12.5,
        {"epochs": 3},
        None,
    )


def test_what_a_resumed_task_had_done_before_is_not_its_speed(workdir: Path) -> None:
    record = Record(workdir / "train" / "status.json", begun())
    with recorded(workdir, begun()):
        for done in (0, 50):
            record.note({"name": "train", "total": 100, "done": done, "unit": "step"})
        record.write()
        resumed = kept(workdir).doing
        assert resumed is not None
        assert resumed.per_second is None
        record.note({"name": "train", "total": 100, "done": 60, "unit": "step"})
        record.note({"name": "train", "total": 100, "done": 60, "unit": "step", "shown": "again"})
        record.write()
        doing = kept(workdir).doing
    assert doing is not None
    assert doing.per_second is not None
    assert doing.seconds_left is not None
    assert doing.per_second * doing.seconds_left == pytest.approx(40)
    assert doing.shown == "again"


def test_an_error_is_kept_as_the_sentence_it_is_and_a_bug_by_its_first_line(workdir: Path) -> None:
    with pytest.raises(LossError), recorded(workdir, begun()):
        raise LossError("epoch 1, step 2: the loss is nan")
    found = kept(workdir)
    assert (found.state, found.kind) == ("failed", "LossError")
    assert found.error == "epoch 1, step 2: the loss is nan"
    with pytest.raises(KeyError), recorded(workdir, begun()):
        raise KeyError("one\ntwo")
    assert kept(workdir).error == "KeyError: 'one\\ntwo'"
    with pytest.raises(KeyboardInterrupt), recorded(workdir, begun()):
        raise KeyboardInterrupt
    assert kept(workdir).state == "stopped"


def test_a_killed_process_leaves_its_stage_running_and_then_silent(workdir: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from terrafine.status import StageStatus, recorded
        begun = StageStatus.begun("train", "d", serves="landcover", workers=1)
        with recorded(Path(sys.argv[1]), begun):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program), workdir], check=False)
    assert killed.returncode < 0
    found = kept(workdir)
    assert (found.state, found.silent) == ("running", False)
    age(workdir, minutes=3)
    assert kept(workdir).silent
    assert "killed, or its machine is gone" in terrafine(workdir, code=4)


def age(workdir: Path, *, minutes: int) -> None:
    """As if everything had been so long ago."""
    found, moment = kept(workdir), timedelta(minutes=minutes)
    earlier = {name: getattr(found, name) - moment for name in ("started", "alive", "moved")}
    path = workdir / found.stage / "status.json"
    path.write_text(found.model_copy(update=earlier).model_dump_json())


def test_stages_of_a_run_are_recorded_as_they_are_done_before_or_fail(project: Project) -> None:
    job = Job.open(project.spec, data=None, workdir=project.root / "run")
    done = ENGINE.run(job, "label")
    found = kept(job.workdir, "label")
    assert (found.state, found.digest, found.metrics) == ("done", done.digest, done.metrics)
    (job.workdir / "label" / "status.json").unlink()
    ENGINE.run(job, "label")
    again = kept(job.workdir, "label")
    assert (again.state, again.moved, again.seconds) == ("done", done.created, done.seconds)

    (project.root / "scene.tif").write_text("no raster")
    with pytest.raises(RasterError) as raised:
        ENGINE.run(job, "label")
    failed = kept(job.workdir, "label")
    assert (failed.state, failed.error, failed.kind) == ("failed", str(raised.value), "RasterError")
    assert str(raised.value) in terrafine(project.spec, "-w", job.workdir, code=4)
    project.change_spec(chips={"size": 64})
    shown = json.loads(terrafine(project.spec, "-w", job.workdir, "--json"))
    assert set(shown["stages"].values()) == {None}, "with another spec all is still to be done"
    assert list(shown["stages"])[:3] == ["label", "train-preliminary", "filter"]


def test_the_terminal_says_what_runs_how_far_what_it_costs_and_when_it_ends(workdir: Path) -> None:
    with recorded(workdir, begun(workers=4)) as record:
        now = kept(workdir)
        task = {"name": "train", "total": 100, "done": 25, "unit": "step", "shown": "loss 0.5"}
        status = now.model_copy(
            update={
                "started": now.started - timedelta(hours=1),
                "doing": {**task, "figures": {}, "per_second": 0.01, "seconds_left": 7200.0},
            }
        )
        path = workdir / "train" / "status.json"
        path.write_text(status.model_dump_json(warnings=False))
        prices = ("--price-worker", 0.5, "--gpus", 4, "--price-gpu", 2)
        text, shown = terrafine(workdir, *prices), terrafine(workdir, *prices, "--json")
        record.finish({}, 1.0)
    for says in ("running", "25 of 100 steps", "1:00:00", "2:00:00", "10.00 of 30.00", "loss 0.5"):
        assert says in text
    assert "ends about" in text
    stage = json.loads(shown)["stages"]["train"]
    assert stage["worker_hours"] == pytest.approx(4, abs=0.01)
    assert stage["cost_at_end"] == pytest.approx(30, abs=0.01)


def test_a_folder_without_a_run_and_a_damaged_status_are_told(
    tmp_path: Path, workdir: Path
) -> None:
    with pytest.raises(StageError, match="no stage has begun here; give the spec"):
        CliRunner().invoke(app, ["status", str(tmp_path)], catch_exceptions=False)
    (workdir / "train" / "status.json").write_text("{")
    with pytest.raises(StageError, match=r"train/status\.json: cannot be read.*delete it"):
        read_statuses(workdir)


def scraped(folder: Path) -> dict[str, float]:
    """Metric with its labels -> value."""
    registry = CollectorRegistry()
    RunMetrics(folder, registry=registry)
    return {
        " ".join([sample.name.removeprefix("terrafine_"), *sample.labels.values()]): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_prometheus_is_told_of_every_run_in_a_folder(tmp_path: Path, workdir: Path) -> None:
    assert scraped(tmp_path / "nothing") == {}
    with recorded(workdir, begun(workers=4)) as record:
        with progress("train", total=4, unit="step") as task:
            task.advance()
        record.write()
        found = scraped(tmp_path)
        assert found["stage_running zion train"] == 1
        assert found["stage_workers zion train"] == 4
        assert found["stage_done_ratio zion train"] == 0.25
        assert found["stage_alive_timestamp_seconds zion train"] == kept(workdir).alive.timestamp()
        assert found[f"disk_free_bytes {tmp_path}"] > 0
        assert scraped(workdir).keys() >= {"stage_running zion train"}, "a run itself will do"
        record.finish({}, 1.0)
    (workdir / "gate").mkdir()
    with recorded(workdir, begun("gate")) as record:
        record.finish({"decision": "promote"}, 1.0)
    with pytest.raises(LossError), recorded(workdir, begun()):
        raise LossError("nan")
    (tmp_path / "other" / "map").mkdir(parents=True)
    (tmp_path / "other" / "map" / "status.json").write_text("{")
    found = scraped(tmp_path)
    assert found["stage_running zion train"] == 0
    assert found["stage_failed zion train LossError"] == 1
    assert "stage_alive_timestamp_seconds zion train" not in found, "what has ended is not silent"
    decided = found["gate_decided_timestamp_seconds zion landcover promote"]
    assert decided == kept(workdir, "gate").moved.timestamp()
    assert found["run_unreadable other"] == 1
