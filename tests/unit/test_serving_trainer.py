"""The rules around a training on Ray that hold without Ray."""

from __future__ import annotations

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from serving.trainer.choose import trainer_for
from serving.trainer.failures import FailureRules, explain_loss
from serving.trainer.ray_trainer import RayTrainer, Scale
from serving.trainer.relay import Mailbox
from terrafine.errors import ChipStoreError, StageError, TrainingError
from terrafine.progress import Event
from terrafine.spec import ModelSpec, TrainingSpec
from terrafine.stages.fit import TrainingTask, fit
from tests.unit.training_scene import LEGEND

DEAD = WorkerHealthCheckFailedError("A worker health check failed.", RuntimeError("gone"))
CUT_OFF = RuntimeError("Connection closed by peer [10.0.0.7]:17301\nmore that nobody reads")


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
