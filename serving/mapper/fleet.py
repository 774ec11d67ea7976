"""Who has which shard: only workers that answer get any, and those of silent ones go to others."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from terrafine.errors import StageError, TerrafineError
from terrafine.mapping import ShardKey
from terrafine.mapping.run import Receipts
from terrafine.progress import warn
from terrafine.telemetry import RequestRecord

# A worker writes and enhances one shard while it infers the next, and holds no third.
AHEAD = 2
# times that one shard may lose its worker: machines go in a long run, but one shard that kills
# every worker must not go round for ever
RETRIES = 5
REPORTING = "reports"
# seconds between two reports of the workers, which threads of their own give
_BETWEEN = 1.0


class FleetObserver(Protocol):
    """Who is told of the workers (``terrafine.mapping.MapWatch``)."""

    def in_flight(self, shards: int) -> None:
        """So many shards are handed out."""

    def lost_worker(self) -> None:
        """A worker died and was started again."""

    def failed_tries(self, process: str, causes: Mapping[str, int]) -> None:
        """Cause -> tries of one process that model servers did not answer so far."""

    def answered(self, records: Iterable[RequestRecord]) -> None:
        """Model servers answered these requests of one process."""


class Report(NamedTuple):
    """How a worker stands: the id of its process, whether that takes the place of one that died,
    what it had to ask model servers again, by cause, and what they have answered since the last
    report."""

    process: int
    replaces: bool
    failed_tries: Mapping[str, int]
    answered: Sequence[RequestRecord]


class Fleet:
    """The workers of one run and what they do.

    ``needs``: what each occupies, by Ray's name of it. A worker that has not answered for
    ``silence`` seconds is told of, and others take its shards once they have nothing else to do;
    it works on when it answers. StageError when none has answered for ``patience`` seconds.
    """

    def __init__(
        self,
        mappers: Sequence[Any],
        shards: Sequence[ShardKey],
        *,
        needs: Mapping[str, float],
        silence: float,
        patience: float,
        observer: FleetObserver | None,
    ) -> None:
        self._mappers, self._needs, self._observer = mappers, needs, observer
        self._silence, self._patience = silence, patience
        self._asked: dict[Any, tuple[int, float]] = {}
        self._ask_at = 0.0
        self._processes: dict[int, int] = {}
        self._told: set[int] = set()
        # seconds spent waiting for workers: what a commit takes is no silence of theirs
        self._waited = self._heard = 0.0
        self._work = _Work(mappers, shards)

    def receipts(self) -> Receipts:
        """Each shard's receipt as soon as it is there; what a shard raises is raised as it is."""
        while self._work.left:
            # before there is any work, so that a worker that dies over its first is noticed
            self._ask()
            silent = self._silent()
            self._tell_silent(silent)
            starting = set(range(len(self._mappers))) - self._processes.keys() - silent
            for number in self._processes.keys() - silent:
                self._work.hand_out(number, silent=silent, starting=starting)
            self._tell_in_flight()
            for task in self._ready():
                if task in self._asked:
                    self._take_report(task)
                    continue
                number, key = self._work.take(task)
                process, receipt = _result(task, _place(key))
                self._seen(number, process)
                yield receipt
        self._tell_in_flight()

    def _ready(self) -> list[Any]:
        began = time.monotonic()
        tasks = [*self._asked, *self._work.by_task]
        ready, _ = ray.wait(tasks, num_returns=1, timeout=_BETWEEN)
        self._waited += time.monotonic() - began
        if ready:
            self._heard = self._waited
        elif self._waited - self._heard > self._patience:
            raise StageError(
                f"map: none of {len(self._mappers)} workers has answered for {self._patience:g} s; "
                f"{self._room()}; give the Ray cluster such machines, lower map.threads, or set "
                "map.predictor to one that needs no GPU; the map resumes"
            )
        return list(ready)

    def _ask(self) -> None:
        """Ask all that have answered how they stand, from time to time."""
        if time.monotonic() < self._ask_at:
            return
        self._ask_at = time.monotonic() + _BETWEEN
        waiting = {number for number, _ in self._asked.values()}
        for number in set(range(len(self._mappers))) - waiting:
            report = self._mappers[number].report.options(concurrency_group=REPORTING)
            self._asked[report.remote()] = number, self._waited

    def _silent(self) -> set[int]:
        late = self._waited - self._silence
        return {number for number, since in self._asked.values() if since < late}

    def _take_report(self, task: Any) -> None:
        number, _ = self._asked.pop(task)
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
        self._seen(number, report.process)
        if self._observer is not None:
            self._observer.answered(report.answered)
            if report.failed_tries:
                self._observer.failed_tries(f"{number} {report.process}", report.failed_tries)

    def _seen(self, number: int, process: int) -> None:
        """A worker is this process now."""
        if self._processes.setdefault(number, process) != process:
            self._processes[number] = process
            self._lost(number)

    def _lost(self, number: int) -> None:
        warn(
            f"map: worker {number + 1} of {len(self._mappers)} died and was started again; the "
            "shards it had are computed again"
        )
        if self._observer is not None:
            self._observer.lost_worker()

    def _tell_silent(self, silent: set[int]) -> None:
        if silent - self._told:
            warn(
                f"map: {len(silent)} of {len(self._mappers)} workers have not answered for "
                f"{self._silence:g} s, and their shards go to those that do; {self._room()}; "
                "lower map.workers or map.threads, or give the Ray cluster more machines"
            )
        self._told = silent

    def _tell_in_flight(self) -> None:
        if self._observer is not None:
            self._observer.in_flight(len(self._work.by_task))

    def _room(self) -> str:
        """What workers ask for, and what is there."""
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        asked = " and ".join(f"{amount:g} {name}" for name, amount in self._needs.items())
        found = " and ".join(
            f"{there.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in self._needs
        )
        return f"each asks one machine for {asked}, and all machines together have {found}"


class _Work:
    """Shards that are to be mapped, and who has them.

    ``left``: shards without a receipt; ``by_task``: those handed out.
    """

    def __init__(self, mappers: Sequence[Any], shards: Sequence[ShardKey]) -> None:
        self._mappers, self.left, count = mappers, len(shards), len(mappers)
        # neighbours go to one worker, which infers what they share once
        self._rows = [
            deque(shards[len(shards) * i // count : len(shards) * (i + 1) // count])
            for i in range(count)
        ]
        self.by_task: dict[Any, tuple[int, ShardKey]] = {}
        self._held: Counter[int] = Counter()

    def hand_out(self, number: int, *, silent: Collection[int], starting: Collection[int]) -> None:
        """Give a worker as many shards as it may hold: of its own row, else of the longest one
        whose worker is not about to start, and in the end those that silent workers have."""
        while self._held[number] < AHEAD:
            key = self._from_rows(number, starting) or self._from_silent(silent)
            if key is None:
                return
            self.by_task[self._mappers[number].map.remote(key)] = number, key
            self._held[number] += 1

    def take(self, task: Any) -> tuple[int, ShardKey]:
        """Worker and shard of a task that is done."""
        number, key = self.by_task.pop(task)
        self._held[number] -= 1
        self.left -= 1
        return number, key

    def _from_rows(self, number: int, starting: Collection[int]) -> ShardKey | None:
        if self._rows[number]:
            return self._rows[number].popleft()
        others = [row for i, row in enumerate(self._rows) if row and i not in starting]
        return max(others, key=len).pop() if others else None

    def _from_silent(self, silent: Collection[int]) -> ShardKey | None:
        for task, (holder, key) in self.by_task.items():
            if holder in silent:
                del self.by_task[task]
                self._held[holder] -= 1
                ray.cancel(task)
                return key
        return None


def _place(key: ShardKey) -> str:
    zone, window = key
    return f"zone {zone}, shard at row {window.row}, column {window.col}"


def _result(task: Any, what: str) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, (TerrafineError, OSError)):
            raise error.cause from error
        reason = (str(error.cause).strip().splitlines() or ["no reason given"])[0]
        raise StageError(
            f"map, {what}: {type(error.cause).__name__}: {reason}; give the workers more memory "
            "if it is that, else report it as --verbose shows it; the map resumes"
        ) from error
    except RayError as error:
        raise StageError(
            f"map, {what}: the Ray worker died {RETRIES + 1} times over it, or could not be "
            "started; give the workers more memory, or fewer threads, and run the map again: it "
            "resumes"
        ) from error
