"""What every worker of a Ray training runs."""

from __future__ import annotations

import time
from typing import TypedDict

from ray.train import get_context

from serving.trainer.relay import Relay
from serving.trainer.shared import require_shared
from terrafine.errors import WorkerError
from terrafine.progress import forwarded
from terrafine.stages.fit import TrainingTask, fit
from terrafine.storage import Storage

_SECONDS_BEHIND_THE_CAUSE = 3.0


class WorkerConfig(TypedDict):
    """What a worker is handed: plain data, and where it reports to."""

    task: str
    mark: str
    """what the driver wrote into the task's storage"""
    relay: Relay


def work(config: WorkerConfig) -> None:
    """One worker's training. The result lies in the task's storage, whoever wrote it."""
    task, context = TrainingTask.model_validate_json(config["task"]), get_context()
    require_shared(Storage.at(task.storage), config["mark"])
    if context.get_world_rank() == 0:
        config["relay"].began(context.get_world_size())
    try:
        with forwarded(config["relay"].sender()):
            fit(task)
    except WorkerError:
        # where another one could not go on this one only says so: let its error arrive first
        time.sleep(_SECONDS_BEHIND_THE_CAUSE)
        raise
