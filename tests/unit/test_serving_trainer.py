"""The rules around a training on Ray that hold without Ray."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from serving.ray_cluster import Cluster
from serving.trainer import ray_trainer, worker
from serving.trainer.choose import trainer_for
from serving.trainer.failures import FailureRules, explain_loss
from serving.trainer.ray_trainer import RayTrainer, Scale
from serving.trainer.relay import Mailbox
from serving.trainer.shared import marked, require_shared
from serving.trainer.worker import WorkerConfig, work
from terrafine.errors import ChipStoreError, StageError, StorageError, TrainingError, WorkerError
from terrafine.progress import Event, forwarded
from terrafine.spec import ModelSpec, TrainingSpec
from terrafine.stages.fit import TrainingTask, fit
from terrafine.storage import Storage
from terrafine.training import patience
from tests.unit.training_scene import LEGEND, StopAfter, run, with_spec

DEAD = WorkerHealthCheckFailedError("A worker health check failed.", RuntimeError("gone"))
CUT_OFF = RuntimeError("Connection closed by peer [10.0.0.7]:17301\nmore that nobody reads")
OUTAGE = StorageError("s3://bucket/run: cannot write it (503)")
ECHO = WorkerError("the first worker could not write; its own message says why")


class Heard:
    """A relay that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)


def task_of(**training: object) -> TrainingTask:
    return TrainingTask(
        chips="/nowhere",
        train=(0, 1, 2),
        validation=(3,),
        model=ModelSpec(arch="hrnet_w2"),
        mean=(500.0, 400.0),
        std=(100.0, 120.0),
        fill=0,
        legend=LEGEND,
        class_weights=(1.0, 1.0, 3.0),
        training=TrainingSpec.model_validate({"batch": 4, **training}),
        epochs=1,
        seed=0,
        storage="/nowhere/training",
        run="test/train",
        heading="train",
    )


def test_one_worker_needs_no_ray() -> None:
    assert trainer_for(TrainingSpec()) is fit
    assert isinstance(trainer_for(TrainingSpec(workers=2)), RayTrainer)
    assert isinstance(trainer_for(TrainingSpec(workers=(1, 4))), RayTrainer)


@pytest.mark.parametrize("workers", [4, (1, 4)])
def test_more_workers_than_chips_are_refused_before_ray_starts(
    workers: int | tuple[int, int],
) -> None:
    with pytest.raises(TrainingError, match="4 workers for training chips 3"):
        RayTrainer()(task_of(workers=workers))
    assert not ray.is_initialized()


def test_a_task_is_the_same_after_its_way_to_a_worker() -> None:
    task = task_of(workers=(2, 3), storage="s3://bucket/run")
    assert TrainingTask.model_validate_json(task.model_dump_json()) == task


def test_our_own_errors_end_a_training_at_once() -> None:
    heard = Heard()
    rules = FailureRules(heard, allowed=3)  # type: ignore[arg-type]
    damaged = ChipStoreError("chips/0: damaged")
    with pytest.raises(ChipStoreError) as raised:
        rules.after_exception(None, {0: CUT_OFF, 1: damaged})
    assert raised.value is damaged
    assert not heard.events


def test_the_first_worker_speaks_for_all() -> None:
    rules = FailureRules(Heard(), allowed=3)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="disk is full"):
        rules.after_exception(
            None, {1: TrainingError("its own message says why"), 0: TrainingError("disk is full")}
        )


def test_a_lost_worker_is_told_and_counted() -> None:
    heard = Heard()
    rules = FailureRules(heard, allowed=1)  # type: ignore[arg-type]
    rules.after_exception(None, {0: CUT_OFF, 1: DEAD})
    assert "training worker 1 died" in str(heard.events[0]["warning"])
    assert "loss 1, 1 are allowed" in str(heard.events[0]["warning"])
    rules.after_exception(None, {1: DEAD})
    assert len(heard.events) == 1, "the last loss is told by the error that ends the training"


@pytest.mark.parametrize(
    "failures",
    [
        {0: OUTAGE, 1: ECHO},
        {0: ECHO, 1: OUTAGE},
        {0: CUT_OFF, 1: OUTAGE},
    ],
)
def test_a_storage_that_cannot_be_reached_is_tried_again_until_it_is_given_up(
    failures: dict[int, Exception],
) -> None:
    heard = Heard()
    rules = FailureRules(heard, allowed=1)  # type: ignore[arg-type]
    rules.after_exception(None, failures)
    (told,) = heard.events
    assert f"{OUTAGE}); the workers start again from the last checkpoint" in str(told["warning"])
    rules.after_exception(None, failures)
    assert len(heard.events) == 1
    # what Ray says when it tries no more
    given_up = ray_trainer._given_up(
        WorkerGroupError("no more tries", failures), task_of(), Cluster(private=True, session=None)
    )
    assert given_up is OUTAGE


def test_a_reading_process_that_is_lost_is_tried_again() -> None:
    heard = Heard()
    rules = FailureRules(heard, allowed=1)  # type: ignore[arg-type]
    rules.after_exception(None, {1: WorkerError("a process that reads chips stopped")})
    assert "training worker 1 failed" in str(heard.events[0]["warning"])


def test_what_no_new_try_changes_comes_before_a_storage_that_may_return() -> None:
    rules = FailureRules(Heard(), allowed=3)  # type: ignore[arg-type]
    with pytest.raises(ChipStoreError):
        rules.after_exception(None, {0: OUTAGE, 1: DEAD, 2: ChipStoreError("damaged")})


def test_a_failure_is_told_in_one_line() -> None:
    assert explain_loss({1: CUT_OFF}) == (
        "training worker 1 failed (RuntimeError: Connection closed by peer [10.0.0.7]:17301)"
    )


def test_a_mailbox_keeps_the_newest_bar_and_every_word() -> None:
    box = Mailbox()
    for done in range(5):
        box.put({"name": "train", "total": 9, "unit": "step", "done": done, "shown": ""})
        box.put({"warning": f"loss {done}"})
    taken = box.take()
    assert [event["warning"] for event in taken if "warning" in event] == [
        f"loss {n}" for n in range(5)
    ]
    assert [event["done"] for event in taken if "name" in event] == [4]
    assert box.take() == []


def test_another_number_of_workers_is_told() -> None:
    box = Mailbox()
    for workers in (4, 4, 3, 3):
        box.began(workers)
    (told,) = box.take()
    assert told["warning"] == (
        "3 workers go on from the last checkpoint, where there were 4 before"
    )


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SECONDS_TO_APPEAR", 0.0)


def test_what_the_driver_wrote_is_seen_where_storage_is_shared(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with marked(storage) as first, marked(storage) as second:
        assert first != second, "an older one would prove nothing"
        require_shared(storage, first)
    assert storage.names() == []


@pytest.mark.usefixtures("_impatient")
def test_a_worker_without_the_drivers_storage_says_so_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(workers=2).model_copy(update={"storage": str(tmp_path / "other disk")})
    monkeypatch.setattr(worker, "get_context", SimpleNamespace)
    with marked(Storage.at(tmp_path)) as mark:
        config = WorkerConfig(task=task.model_dump_json(), mark=mark, relay=None)  # type: ignore[typeddict-item]
        with pytest.raises(
            TrainingError, match=r"other disk: the machine .* give training\.storage"
        ):
            work(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage of a training of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, epochs=2)
    return folder


def test_the_driver_waits_for_a_last_checkpoint_that_it_does_not_see_yet(
    trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=2, spec=with_spec(checkpoint_steps=1), observer=StopAfter(3))
    threading.Timer(1.5, shutil.copytree, (trained, tmp_path), {"dirs_exist_ok": True}).start()
    assert len(ray_trainer._result(Storage.at(tmp_path), 2).history) == 2


@pytest.mark.usefixtures("_impatient")
def test_a_last_checkpoint_that_stays_away_is_told(trained: Path) -> None:
    assert len(ray_trainer._result(Storage.at(trained), 2).history) == 2
    with pytest.raises(TrainingError, match=r"their last checkpoint is not there; give"):
        ray_trainer._result(Storage.at(trained), 3)


@dataclass
class Machines(Cluster):
    """A cluster of so many GPUs."""

    gpus: int = 0

    def count(self, resource: str) -> int:
        return {"GPU": self.gpus}[resource]


def takes_gpus(device: str, gpus: int, *, private: bool) -> tuple[bool, list[Event]]:
    """Whether 4 workers or more take GPUs, and what is said about it."""
    told: list[Event] = []
    spec = TrainingSpec.model_validate({"workers": (4, 8), "device": device})
    with forwarded(told.append):
        cluster = Machines(private=private, session=None, gpus=gpus)
        return ray_trainer._takes_gpus(spec, Scale.of(spec), cluster), told


@pytest.mark.parametrize("gpus", [1, 3, 4, 9])
def test_a_cluster_with_some_gpus_is_waited_for(gpus: int) -> None:
    assert takes_gpus("auto", gpus, private=False) == (True, [])


def test_training_on_the_processors_of_a_cluster_is_told() -> None:
    gpus, (told,) = takes_gpus("auto", 0, private=False)
    assert not gpus
    assert "set training.device to cuda" in str(told["warning"])
    assert takes_gpus("cpu", 0, private=False) == (False, [])
    assert takes_gpus("cuda", 0, private=False) == (True, [])


def test_this_machine_grows_no_gpus() -> None:
    assert takes_gpus("auto", 0, private=True) == (False, [])
    assert takes_gpus("auto", 4, private=True) == (True, [])
    for device, gpus in (("auto", 3), ("cuda", 0)):
        with pytest.raises(TrainingError, match=f"this machine has {gpus}; lower"):
            takes_gpus(device, gpus, private=True)


@pytest.mark.parametrize(
    ("workers", "loaders", "least", "most"), [(3, 0, 3, 3), ((2, 5), 1, 2, 5), (1, 2, 1, 1)]
)
def test_this_machines_ray_has_room_for_the_fewest_workers(
    workers: int | tuple[int, int], loaders: int, least: int, most: int
) -> None:
    scale = Scale.of(TrainingSpec(workers=workers, loader_workers=loaders))
    assert (scale.least, scale.most) == (least, most)
    assert scale.cpus_here >= least * (1 + loaders)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StageError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: no Ray cluster answers"):
        RayTrainer()(task_of(workers=2))
