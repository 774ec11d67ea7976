"""Shards of a map on Ray actors, each with its own model and its own opened imagery."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from serving.ray_cluster import connected
from terrafine.errors import StageError, TerrafineError
from terrafine.mapping import ShardKey, ShardReceipt, ShardWriter
from terrafine.mapping.run import Receipts, WriteShard
from terrafine.progress import warn

# A worker writes and enhances one shard while it infers the next, and holds no third.
_AHEAD = 2
# times that one shard may lose its worker: machines go in a long run, but one shard that kills
# every worker must not go round for ever
_RETRIES = 5
# seconds between two reports of the workers, which threads of their own give
_BETWEEN = 1.0
_REPORTING = "reports"


class FleetObserver(Protocol):
    """Who is told of the workers (``terrafine.mapping.MapWatch``)."""

    def in_flight(self, shards: int) -> None:
        """So many shards are handed out."""

    def lost_worker(self) -> None:
        """A worker died and was started again."""

    def failed_tries(self, process: str, causes: Mapping[str, int]) -> None:
        """Cause -> tries of one process that model servers did not answer so far."""


class Report(NamedTuple):
    """How a worker stands: the id of its process, whether that takes the place of one that died,
    and what it had to ask model servers again, by cause."""

    process: int
    replaces: bool
    failed_tries: Mapping[str, int]


class Mapper:
    """What an actor does: maps shards of one run."""

    def __init__(self, write: WriteShard) -> None:
        self._write = write

    def report(self) -> Report:
        """How this worker stands; answered while it maps."""
        replaces = ray.get_runtime_context().was_current_actor_reconstructed
        failed = self._write.failed_tries if isinstance(self._write, ShardWriter) else {}
        return Report(os.getpid(), replaces, failed)

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
                concurrency_groups={_REPORTING: 1},
            )(Mapper)
            mappers: list[Any] = [actor.remote(run) for _ in range(workers)]
            try:
                yield from self._share_out(mappers, shards)
            finally:
                # an error's traceback would keep them, and what they occupy, alive
                for mapper in mappers:
                    ray.kill(mapper)

    def _share_out(self, mappers: list[Any], shards: Sequence[ShardKey]) -> Receipts:
        # neighbours go to one worker, which infers what they share once
        count = len(mappers)
        rows = [
            deque(shards[len(shards) * i // count : len(shards) * (i + 1) // count])
            for i in range(count)
        ]
        by_task: dict[Any, tuple[int, ShardKey]] = {}
        # asked before there is any work, so that a worker that dies over its first is noticed
        reports = _Reports(mappers, self._tell_lost, self.observer)

        def hand_out(number: int) -> None:
            row = rows[number] or max(rows, key=len)
            if row:
                key = row.popleft() if row is rows[number] else row.pop()
                by_task[mappers[number].map.remote(key)] = number, key

        for _ in range(_AHEAD):
            for number in range(len(mappers)):
                hand_out(number)
        while by_task:
            self._tell_in_flight(len(by_task))
            reports.ask()
            ready, _ = ray.wait([*reports.asked, *by_task], num_returns=1, timeout=_BETWEEN)
            for task in ready:
                if task in reports.asked:
                    reports.take(task)
                    continue
                number, key = by_task.pop(task)
                process, receipt = _result(task, _place(key))
                reports.seen(number, process)
                hand_out(number)
                yield receipt
        self._tell_in_flight(0)

    def _tell_in_flight(self, shards: int) -> None:
        if self.observer is not None:
            self.observer.in_flight(shards)

    def _tell_lost(self, number: int) -> None:
        warn(
            f"map: worker {number + 1} of {self.workers} died and was started again; the shards "
            "it had are computed again"
        )
        if self.observer is not None:
            self.observer.lost_worker()


class _Reports:
    """What workers say of themselves, asked for again and again while they work."""

    def __init__(
        self, mappers: list[Any], lost: Callable[[int], None], observer: FleetObserver | None
    ) -> None:
        self.asked: dict[Any, int] = {}
        self._mappers, self._lost, self._observer = mappers, lost, observer
        self._processes: dict[int, int] = {}
        self._next = 0.0

    def ask(self) -> None:
        """Ask all that have answered, from time to time."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _BETWEEN
        for number in set(range(len(self._mappers))) - set(self.asked.values()):
            report = self._mappers[number].report.options(concurrency_group=_REPORTING)
            self.asked[report.remote()] = number

    def take(self, task: Any) -> None:
        """Take an answer that is there."""
        number = self.asked.pop(task)
        try:
            report: Report = _result(task, "start")
        except StageError:
            # one that has been seen at work: whether it died its shards will tell
            if number not in self._processes:
                raise
            return
        if report.replaces and number not in self._processes:  # it died before it had answered
            self._lost(number)
            self._processes[number] = report.process
        self.seen(number, report.process)
        if self._observer is not None and report.failed_tries:
            self._observer.failed_tries(f"{number} {report.process}", report.failed_tries)

    def seen(self, number: int, process: int) -> None:
        """A worker is this process now."""
        if self._processes.setdefault(number, process) != process:
            self._processes[number] = process
            self._lost(number)


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
