"""Training on a real Ray: the same curve, whatever is killed, and nothing lost but a few steps."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from serving.ray_cluster import connected
from serving.trainer.ray_trainer import RayTrainer
from serving.trainer.relay import Relay
from terrafine.errors import StorageError, TrainingError
from terrafine.progress import EVENTS_VARIABLE
from terrafine.stages import ENGINE, Job
from tests.disks import small_disk
from tests.processes import command, family, living
from tests.scenes import Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STAGE = "train-preliminary"
# gentle, so that sums in another order do not grow into another training
GENTLE = {"learning_rate": 0.05, "preliminary_epochs": 3, "crops_per_chip": 1}
# long enough to kill things meanwhile
LONG = {"learning_rate": 0.005, "preliminary_epochs": 25, "crops_per_chip": 1}
CHECKPOINT_STEPS = 3
# of the Ray that the tests share, whatever this machine has
CPUS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(cpus=CPUS):
        yield


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("labelled"))
    ENGINE.run(job_of(project), "label")
    return project


@pytest.fixture(scope="module")
def alone(labelled: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What one process makes of it."""
    project = copy_of(labelled, tmp_path_factory.mktemp("alone") / "copy")
    ENGINE.run(job_of(project), STAGE)
    return project


@pytest.fixture
def project(labelled: Project, tmp_path: Path) -> Project:
    return copy_of(labelled, tmp_path / "copy")


def copy_of(project: Project, root: Path) -> Project:
    shutil.copytree(project.root, root, symlinks=True)
    copied = Project(root, project.truth_HW, project.image_CHW)
    copied.change_spec(training=GENTLE, model={"arch": "unet_w4"})
    return copied


def job_of(project: Project) -> Job:
    return Job.open(project.spec, data=None, workdir=project.root / "run")


def on_ray(project: Project, **training: object) -> Job:
    project.change_spec(training={"checkpoint_steps": CHECKPOINT_STEPS, **training})
    return replace(job_of(project), trainer=RayTrainer())


def losses(project: Project) -> dict[int, float]:
    """Loss of every step of a finished training."""
    job = job_of(project)
    done = ENGINE.find(job, STAGE)
    assert done is not None
    with job.output(done, "steps").open() as file:
        rows = list(csv.DictReader(file))
    found = {int(row["step"]): float(row["loss"]) for row in rows}
    assert len(found) == len(rows), "a step stands there twice"
    return found


def assert_same_curve(ours: Project, reference: Project) -> None:
    found, expected = losses(ours), losses(reference)
    assert list(found) == list(expected) == list(range(1, len(expected) + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-3)


def test_two_workers_train_as_one_process_does(
    cluster: None, project: Project, alone: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = project.root / "events"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    done = ENGINE.run(on_ray(project, workers=2, loader_workers=1), STAGE)
    assert_same_curve(project, alone)
    expected = ENGINE.find(job_of(alone), STAGE)
    assert expected is not None
    agreement = "validation_agreement"
    assert done.metrics[agreement] == pytest.approx(expected.metrics[agreement], abs=0.02)
    # the bar of the first worker is the bar that is seen here
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    bars = [event for event in seen if event.get("name") == "train preliminary"]
    assert bars[-1]["done"] == bars[-1]["total"] == len(losses(project))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    folder = job_of(project).output(done, "model").parent
    assert not (folder / "training").exists(), "checkpoints are left behind"


def test_an_error_of_the_loop_is_not_tried_again_and_keeps_its_sentence(
    cluster: None, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = project.root / "events"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    job = on_ray(project, workers=2, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf).*on chips") as raised:
        ENGINE.run(job, STAGE)
    assert "\n" not in str(raised.value)
    assert "lower training.learning_rate" in str(raised.value)
    assert "start again" not in events.read_text()


def fill_once_checkpointed(disk: Path) -> None:
    """Leave no space on a disk as soon as a checkpoint lies there."""
    while not list(disk.rglob("checkpoints/*.json")):
        time.sleep(0.01)
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(10_000))


def test_a_full_disk_keeps_the_last_checkpoint(
    cluster: None, project: Project, alone: Project, tmp_path: Path
) -> None:
    for disk in small_disk(tmp_path / "disk", kilobytes=50_000):
        job = on_ray(project, workers=2, storage=str(disk), max_failures=1)
        threading.Thread(target=fill_once_checkpointed, args=(disk,), daemon=True).start()
        with pytest.raises(StorageError, match=r"the checkpoint of step (\d+) is kept in") as told:
            ENGINE.run(job, STAGE)
        assert "No space left" in str(told.value)
        kept = sorted(int(path.stem) for path in disk.rglob("checkpoints/*.json"))
        assert f"the checkpoint of step {kept[-1]} is kept" in str(told.value)
        (disk / "filler").unlink()
        ENGINE.run(job, STAGE)
        assert_same_curve(project, alone)
        assert not list(disk.rglob("*.pt")), "checkpoints are left behind"


class Run:
    """``terrafine train --preliminary`` in a process of its own, with a Ray of its own."""

    def __init__(self, project: Project, *, cpus: int) -> None:
        self.events = project.root / "events"
        self.events.touch()
        arguments = [
            sys.executable, "-m", "tests.integration.ray_with_cpus", cpus,
            "train", project.spec, "--preliminary", "--workdir", project.root / "run",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            list(map(str, arguments)),
            env=os.environ | {EVENTS_VARIABLE: str(self.events)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.first = len(self.events.read_text().splitlines())

    def resumed(self, after: str = "") -> int:
        """Where its bar was first, or first after a warning; 0 while it is not up."""
        events = [json.loads(line) for line in self.events.read_text().splitlines()[self.first :]]
        told = [i for i, event in enumerate(events) if after in event.get("warning", "")]
        since = events[told[-1] :] if after else events
        return next((event["done"] for event in since if event.get("done")), 0)

    def workers(self) -> list[int]:
        """Ids of its training workers."""
        return sorted(p for p in family(self.process.pid) if "RayTrainWorker" in command(p))

    def wait_for(self, condition: Callable[[], object], seconds: float = 250) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, "not in time: " + self.events.read_text()[-500:]
            time.sleep(0.05)


def checkpointed(project: Project) -> int:
    """Step of the newest checkpoint with its digest; 0 where there is none."""
    place = (project.root / "run" / STAGE).glob("*.partial/training/checkpoints/*.json")
    return max((int(path.stem) for path in place), default=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def metric(port: int, name: str) -> float:
    """What Prometheus would read now; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[-1]) for line in lines if line.startswith(name + "{")), 0.0)


def test_a_killed_worker_and_a_killed_driver_cost_a_few_steps(
    project: Project, tmp_path: Path
) -> None:
    project.change_spec(training=LONG)
    alone = copy_of(project, tmp_path / "alone")
    alone.change_spec(training=LONG)
    ENGINE.run(job_of(alone), STAGE)
    port = free_port()
    project.change_spec(
        training={"workers": 2, "checkpoint_steps": CHECKPOINT_STEPS, "metrics_port": port}
    )
    run = Run(project, cpus=2)
    run.wait_for(lambda: checkpointed(project) >= CHECKPOINT_STEPS and run.workers())
    before = checkpointed(project)
    os.kill(run.workers()[-1], signal.SIGKILL)
    run.wait_for(lambda: "start again" in run.events.read_text())
    run.wait_for(lambda: run.resumed(after="start again"))
    assert run.resumed(after="start again") >= before
    # the first worker that came after it serves the metrics at the same place
    run.wait_for(lambda: metric(port, "terrafine_training_step") > before)

    workers = run.workers()
    run.process.kill()
    run.process.wait()
    before = checkpointed(project)
    assert not living(workers, seconds=60), "workers of a killed driver live on"

    # it goes on in mid-epoch, on what there is now
    project.change_spec(training={"workers": [1, 2]})
    again = Run(project, cpus=1)
    seen = set()
    while again.process.poll() is None:
        seen |= set(again.workers())
        time.sleep(0.1)
    output, _ = again.process.communicate()
    assert again.process.returncode == 0, output
    assert "Traceback" not in output
    assert len(seen) == 1, "there is room for one worker"
    assert again.resumed() >= before
    assert_same_curve(project, alone)


def test_the_pipeline_trains_on_two_workers(project: Project) -> None:
    project.change_spec(
        training={"workers": 2, "epochs": 1, "preliminary_epochs": 1},
        gate={"min_overall_accuracy": 1.0},
        filter={"min_agreement": 0.0},
    )
    run = project.root / "run"
    terrafine = Path(sys.executable).with_name("terrafine")
    done = subprocess.run(
        [terrafine, "run", project.spec, "--workdir", run],
        capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 3, "refused: " + done.stderr + done.stdout
    events = [json.loads(line) for line in (run / ".events").read_text().splitlines()]
    finished = [event["stage"] for event in events if event.get("state") == "done"]
    assert finished[-1] == "refuse", "what comes after the gate has no part in training"
    bars = {event["name"]: event["done"] for event in events if "name" in event}
    assert bars["train preliminary"] > 0
    assert bars["train"] > 0


def test_a_disk_that_has_space_again_lets_the_training_go_on(
    cluster: None, project: Project, alone: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = project.root / "events"
    events.touch()
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))

    def fill_for_a_while(disk: Path) -> None:
        fill_once_checkpointed(disk)
        while "start again from the last checkpoint" not in events.read_text():
            time.sleep(0.01)
        (disk / "filler").unlink()

    for disk in small_disk(tmp_path / "disk", kilobytes=50_000):
        job = on_ray(project, workers=2, storage=str(disk))
        threading.Thread(target=fill_for_a_while, args=(disk,), daemon=True).start()
        ENGINE.run(job, STAGE)
        assert "No space left" in events.read_text()
        assert_same_curve(project, alone)


def test_a_mailbox_that_is_lost_is_there_again(cluster: None) -> None:
    relay, deadline = Relay.start(), time.monotonic() + 120
    assert relay.take(seconds=120) == []
    ray.kill(relay.actor, no_restart=False)
    while not (taken := relay.take(seconds=5)):
        assert time.monotonic() < deadline, "nobody answers"
        relay.send({"warning": "still here"})
    assert taken[0] == {"warning": "still here"}
