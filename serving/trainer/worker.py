"""What every worker of a Ray training runs."""

from __future__ import annotations

import time
from typing import TypedDict

from ray.train import get_context

from serving.trainer.relay import Relay
from terrafine.errors import TerrafineError
from terrafine.progress import forwarded
from terrafine.stages.fit import TrainingTask, fit

_SECONDS_BEHIND_THE_FIRST = 3.0


class WorkerConfig(TypedDict):
    """What a worker is handed: plain data, and where it reports to."""

    task: str
    relay: Relay


def work(config: WorkerConfig) -> None:
    """One worker's training. The result lies in the task's storage, whoever wrote it."""
    try:
        with forwarded(config["relay"].sender()):
            fit(TrainingTask.model_validate_json(config["task"]))
    except TerrafineError:
        if get_context().get_world_rank() > 0:
            # where the first worker fails, the others only say so: let its error arrive first
            time.sleep(_SECONDS_BEHIND_THE_FIRST)
        raise
