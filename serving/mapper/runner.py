"""Shards of a map on Ray actors, each with its own model and its own opened imagery."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from serving.ray_cluster import connected
from terrafine.errors import StageError, TerrafineError
from terrafine.mapping import ShardKey, ShardReceipt
from terrafine.mapping.run import Receipts, WriteShard
from terrafine.progress import warn

# A worker writes and enhances one shard while it infers the next, and holds no third.
_AHEAD = 2
# times that one shard may lose its worker: machines go in a long run, but one shard that kills
# every worker must not go round for ever
_RETRIES = 5


class FleetObserver(Protocol):
    """Who is told of the workers (``terrafine.telemetry.MappingMetrics``)."""

    def in_flight(self, shards: int) -> None:
        """So many shards are handed out."""

    def lost_worker(self) -> None:
        """A worker died and was started again."""


class Mapper:
    """What an actor does: maps shards of one run."""

    def __init__(self, write: WriteShard) -> None:
        self._write = write

    def process(self) -> tuple[int, bool]:
        """The id of this process, and whether it takes the place of one that died."""
        return os.getpid(), ray.get_runtime_context().was_current_actor_reconstructed

    def map(self, key: ShardKey) -> tuple[int, ShardReceipt]:
        """The id of this process, and the receipt of a shard once it is written."""
        return os.getpid(), self._write(key)


@dataclass(frozen=True)
class RayShardRunner:
    """A :class:`terrafine.mapping.ShardRunner` on the connected cluster.

    A worker that dies is started again, and its shards are computed again: to the same bytes.
    ``cpus``, ``gpus``: what each worker occupies.
    """

    workers: int
    cpus: int = 1
    gpus: float = 0.0
    observer: FleetObserver | None = None

    def __call__(self, shards: Sequence[ShardKey], write: WriteShard) -> Receipts:
        """Receipts, each as soon as it is there, of at most two shards per worker at a time.

        What a shard raises is raised here as it is; StageError when one loses its worker again
        and again, or the cluster is gone.
        """
        workers = min(self.workers, len(shards))
        if workers == 0:
            return
        with connected(cpus=max(workers * self.cpus, os.cpu_count() or 1)):
            run = ray.put(write)
            actor = cast(Any, ray).remote(
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                max_restarts=-1,
                max_task_retries=_RETRIES,
                max_concurrency=_AHEAD,
            )(Mapper)
            mappers: list[Any] = [actor.remote(run) for _ in range(workers)]
            try:
                yield from self._share_out(mappers, shards)
            finally:
                # an error's traceback would keep them, and what they occupy, alive
                for mapper in mappers:
                    ray.kill(mapper)

    def _share_out(self, mappers: list[Any], shards: Sequence[ShardKey]) -> Receipts:
        waiting = iter(shards)
        by_task: dict[Any, tuple[int, ShardKey]] = {}
        # asked before there is any work, so that a worker that dies over its first is noticed
        births = {mapper.process.remote(): number for number, mapper in enumerate(mappers)}
        processes: dict[int, int] = {}

        def hand_out(number: int) -> None:
            for key in waiting:
                by_task[mappers[number].map.remote(key)] = number, key
                return

        for _ in range(_AHEAD):
            for number in range(len(mappers)):
                hand_out(number)
        while by_task:
            (task,), _ = ray.wait([*births, *by_task], num_returns=1)
            if task in births:
                number = births.pop(task)
                processes[number], replaces = _result(task, "start")
                if replaces:  # it died before it had answered
                    self._tell_lost(number)
                continue
            number, key = by_task.pop(task)
            process, receipt = _result(task, _place(key))
            if processes.setdefault(number, process) != process:
                processes[number] = process
                self._tell_lost(number)
            hand_out(number)
            if self.observer is not None:
                self.observer.in_flight(len(by_task))
            yield receipt

    def _tell_lost(self, number: int) -> None:
        warn(
            f"map: worker {number + 1} of {self.workers} died and was started again; the shards "
            "it had are computed again"
        )
        if self.observer is not None:
            self.observer.lost_worker()


def _place(key: ShardKey) -> str:
    zone, window = key
    return f"zone {zone}, shard at row {window.row}, column {window.col}"


def _result(task: Any, what: str) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, (TerrafineError, OSError)):
            raise error.cause from error
        raise
    except (RayActorError, ObjectLostError) as error:
        raise StageError(
            f"map, {what}: the Ray worker died {_RETRIES + 1} times over it, or could not be "
            "started; give the workers more memory, or fewer threads, and run the map again: it "
            "resumes"
        ) from error
