"""A running map, watched: its figures for a terminal, for machines, for Prometheus and the log."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from terrafine.mapping.predictor import Served
from terrafine.mapping.terminal import draw_shards
from terrafine.mapping.write import ShardKey, ShardReceipt
from terrafine.progress import Task, describe, on_terminal, progress, warn

if TYPE_CHECKING:
    from terrafine.telemetry import RequestRecord, VersionStatistics

# seconds between two looks at the servers, and between two sentences about the same trouble
_LOOK, _SAY = 1.0, 10.0


@dataclass(frozen=True)
class Figures:
    """How a map goes.

    ``mpixel_per_s``: written since this start; ``seconds_left``: at that speed, None before the
    first shard; ``in_flight``: shards that workers have; ``failed_tries``: requests to model
    servers that were sent again; ``queue_seconds``: mean wait in their queue, None where no server
    is asked.
    """

    shards: int
    done: int
    mpixel_per_s: float
    seconds_left: float | None
    in_flight: int
    lost_workers: int
    failed_tries: int
    queue_seconds: float | None

    def __str__(self) -> str:
        shown: dict[str, float | str] = {"Mpixel/s": self.mpixel_per_s}
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            shown["left"] = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        shown["in flight"] = str(self.in_flight)
        for name, number in (("lost workers", self.lost_workers), ("retries", self.failed_tries)):
            if number:
                shown[name] = str(number)
        if self.queue_seconds is not None:
            shown["queue ms"] = 1000 * self.queue_seconds
        return describe(shown)


class MapObserver(Protocol):
    """Who is told how a map goes: :class:`MapWatch`."""

    def started(self, planned: Collection[ShardKey], done: Collection[ShardKey]) -> None:
        """A run of ``planned`` shards begins with ``done`` of them."""

    def served(self, predictor: Served) -> None:
        """Servers are asked; this predictor knows how they do."""

    def shard(self, receipt: ShardReceipt) -> None:
        """A shard was written."""

    def commit(self, shards: int, seconds: float) -> None:
        """So many shards became readable."""


class MapGauges(Protocol):
    """Who keeps the figures (``terrafine.telemetry.MappingMetrics``)."""

    def shard(self, receipt: ShardReceipt) -> None:
        """A shard was written."""

    def commit(self, shards: int, seconds: float) -> None:
        """So many shards became readable."""

    def lost_worker(self) -> None:
        """A worker died and was started again."""

    def failed_tries(self, cause: str, times: int) -> None:
        """So many more tries failed for this reason."""

    def request(self, record: RequestRecord) -> None:
        """Model servers answered a request."""

    def servers(self, found: Iterable[VersionStatistics]) -> None:
        """What model servers have counted, read from them now and then."""

    def figures(self, now: Figures) -> None:
        """How the map goes now."""


class MapWatch:
    """Told of all that happens to a map, and shows it for as long as the block lasts.

    On a terminal the shards are drawn; elsewhere the figures go where ``terrafine.progress`` sends
    them. Trouble that was overcome is told in any case. Safe for threads.
    """

    def __init__(self, gauges: MapGauges, *, console: Console | None = None) -> None:
        """``console``: the terminal to draw on; default: stderr, where that is one."""
        self._gauges = gauges
        self._console = console or (Console(stderr=True) if on_terminal() else None)
        self._lock = threading.Lock()
        self._planned: frozenset[ShardKey] = frozenset()
        self._done: set[ShardKey] = set()
        self._began, self._computed, self._pixels = time.monotonic(), 0, 0
        self._in_flight = self._lost = 0
        self._tries: dict[str, Mapping[str, int]] = {}
        self._unsaid: Counter[str] = Counter()
        self._said = float("-inf")
        self._servers: Served | None = None
        self._queue: float | None = None
        self._task: Task | None = None
        self._over = threading.Event()
        self._shown = ExitStack()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._tell()
        self._say()
        self._shown.close()

    def started(self, planned: Collection[ShardKey], done: Collection[ShardKey]) -> None:
        """A run of ``planned`` shards begins with ``done`` of them."""
        with self._lock:
            self._planned, self._done = frozenset(planned), set(done) & set(planned)
            self._began, self._computed, self._pixels = time.monotonic(), 0, 0
        here = self._console is not None
        self._task = self._shown.enter_context(
            progress("map", total=len(self._planned), unit="shard", drawn=not here)
        )
        if here:
            live = Live(console=self._console, get_renderable=self._drawn, refresh_per_second=2)
            self._shown.enter_context(live)
        self._tell()

    def served(self, predictor: Served) -> None:
        """Servers are asked; this predictor knows how they do."""
        self._servers = predictor

    def shard(self, receipt: ShardReceipt) -> None:
        """A shard was written."""
        with self._lock:
            self._done.add(receipt.key)
            self._computed += 1
            self._pixels += receipt.window.height * receipt.window.width
        self._gauges.shard(receipt)
        self._tell()

    def commit(self, shards: int, seconds: float) -> None:
        """So many shards became readable."""
        self._gauges.commit(shards, seconds)

    def in_flight(self, shards: int) -> None:
        """So many shards are handed out to workers."""
        with self._lock:
            self._in_flight = shards

    def lost_worker(self) -> None:
        """A worker died and was started again."""
        with self._lock:
            self._lost += 1
        self._gauges.lost_worker()

    def failed_tries(self, process: str, causes: Mapping[str, int]) -> None:
        """Cause -> tries of one process that failed so far, and were repeated."""
        with self._lock:
            new = Counter(causes) - Counter(self._tries.get(process, {}))
            self._tries[process] = dict(causes)
            self._unsaid += new
        for cause, times in new.items():
            self._gauges.failed_tries(cause, times)
        if new and time.monotonic() - self._said > _SAY:
            self._say()

    def answered(self, records: Iterable[RequestRecord]) -> None:
        """Model servers answered these requests of one process."""
        for record in records:
            self._gauges.request(record)

    @property
    def now(self) -> Figures:
        """How the map goes."""
        with self._lock:
            seconds = max(time.monotonic() - self._began, 1e-9)
            left = len(self._planned) - len(self._done)
            return Figures(
                shards=len(self._planned),
                done=len(self._done),
                mpixel_per_s=self._pixels / 1e6 / seconds,
                seconds_left=left * seconds / self._computed if self._computed else None,
                in_flight=self._in_flight,
                lost_workers=self._lost,
                failed_tries=sum(sum(causes.values()) for causes in self._tries.values()),
                queue_seconds=self._queue,
            )

    def look(self) -> None:
        """Ask what nobody tells: how the servers do."""
        if self._servers is not None:
            self.failed_tries("driver", self._servers.failed_tries)
            self.answered(self._servers.answered())
            waited = self._servers.queue_seconds()
            self._gauges.servers(self._servers.counted)
            with self._lock:
                self._queue = self._queue if waited is None else waited
            self._tell()

    def _look_on(self) -> None:
        """Now and then, so that a map that stands still shows why."""
        while not self._over.wait(_LOOK):
            self.look()

    def _tell(self) -> None:
        now = self.now
        self._gauges.figures(now)
        if self._task is not None:
            self._task.show(now.done, str(now), asdict(now))

    def _say(self) -> None:
        with self._lock:
            causes, self._unsaid, self._said = self._unsaid, Counter(), time.monotonic()
        if causes:
            why = ", ".join(f"{n} {cause.replace('_', ' ')}" for cause, n in causes.most_common())
            warn(
                f"map: {causes.total()} requests to the model servers failed and were sent again "
                f"({why})"
            )

    def _drawn(self) -> Group:
        now = self.now
        with self._lock:
            planned, done = self._planned, frozenset(self._done)
        assert self._console is not None, "only a terminal is drawn on"
        width, height = self._console.size
        share = now.done / max(now.shards, 1)
        return Group(
            draw_shards(planned, done, width=width, height=height - 4),
            Text(f"map  {now.done:,} of {now.shards:,} shards  {share:.1%}", style="bold"),
            Text(str(now), style="dim"),
        )
