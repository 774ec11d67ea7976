"""What Ray's controller does when a training worker is lost, and how that is told."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from serving.trainer.relay import Relay
from terrafine.errors import TerrafineError


class FailureRules(UserCallback):
    """In Ray's controller: what a new try cannot change ends the training, the rest is told.

    Ray tries again after every exception. One of ours (a damaged chip, a loss that is no number)
    would come again each time; raised here, in the controller, it ends the run as it is.
    """

    def __init__(self, relay: Relay, allowed: int) -> None:
        self._relay, self._allowed, self._lost = relay, allowed, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called once per failure with the exception of every worker that has one."""
        for _, error in sorted(worker_exceptions.items()):
            if isinstance(error, TerrafineError):
                raise error
        self._lost += 1
        if self._lost <= self._allowed:
            self._relay.send(
                {
                    "warning": f"{explain_loss(worker_exceptions)}; the workers start again from "
                    f"the last checkpoint (loss {self._lost}, {self._allowed} are allowed)"
                }
            )


def explain_loss(worker_exceptions: dict[int, Exception]) -> str:
    """ "training worker 1 died", or the first line of what it raised.

    Where one dies the others lose their connection to it, so a death is told before an exception.
    """
    rank, error = min(worker_exceptions.items(), key=lambda item: (not _died(item[1]), item[0]))
    if _died(error):
        return f"training worker {rank} died (killed, out of memory, or its machine is gone)"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"training worker {rank} failed ({type(error).__name__}: {first_line})"


def _died(error: Exception) -> bool:
    return type(error).__name__ == "WorkerHealthCheckFailedError"
