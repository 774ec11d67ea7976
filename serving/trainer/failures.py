"""What Ray's controller does when a training worker is lost, and how that is told."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from serving.trainer.relay import Relay
from terrafine.errors import StorageError, TerrafineError, WorkerError


class FailureRules(UserCallback):
    """In Ray's controller: what a new try cannot change ends the training, the rest is told.

    Ray tries again after every exception. Most of ours (a damaged chip, a loss that is no number)
    would come again each time; raised here, in the controller, they end the run as they are. A
    storage that cannot be reached or a process that is gone may be there again at the next try.
    """

    def __init__(self, relay: Relay, allowed: int) -> None:
        self._relay, self._allowed, self._lost = relay, allowed, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called once per failure with the exception of every worker that has one."""
        _, error = cause_of(worker_exceptions)
        if _is_final(error):
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
    """ "training worker 1 died", or the first line of what it raised."""
    rank, error = cause_of(worker_exceptions)
    if _died(error):
        return f"training worker {rank} died (killed, out of memory, or its machine is gone)"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"training worker {rank} failed ({type(error).__name__}: {first_line})"


def cause_of(worker_exceptions: dict[int, Exception]) -> tuple[int, Exception]:
    """The worker that the others failed after, and its exception.

    Where one dies the others lose their connection to it, and where one cannot go on for a reason
    of its own they only say so.
    """
    return min(worker_exceptions.items(), key=lambda item: (*_order(item[1]), item[0]))


def _order(error: Exception) -> tuple[bool, ...]:
    ours = isinstance(error, TerrafineError)
    return not _is_final(error), not _died(error), not ours, isinstance(error, WorkerError)


def _is_final(error: Exception) -> bool:
    passing = isinstance(error, StorageError | WorkerError)
    return isinstance(error, TerrafineError) and not passing


def _died(error: Exception) -> bool:
    return type(error).__name__ == "WorkerHealthCheckFailedError"
