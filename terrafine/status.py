"""How each stage of a run stands: a small file beside its results, for whoever looks in.

``WORKDIR/<stage>/status.json`` is written anew every few seconds while the stage is at work, on
whatever machine that is; ``terrafine status`` and ``terrafine watch --runs`` read it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from terrafine.errors import StageError, TerrafineError, explain
from terrafine.progress import Event, noted

STATUS = "status.json"
BEAT = 5.0
# beats that may be missed, on a slow network file system, before a stage counts as dead
_SILENT = timedelta(seconds=12 * BEAT)

State = Literal["running", "done", "failed", "stopped"]
Figure = float | int | str | None


class Doing(BaseModel):
    """The task that a stage has in hand: ``done`` of ``total`` of a ``unit``.

    ``shown``: what stands beside its bar; ``figures``: the same for machines. ``per_second``,
    ``seconds_left``: at the mean speed since the second state was told, so that what a resumed
    task had done before does not count; None before it can be said.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    total: int
    done: int
    unit: str
    shown: str = ""
    figures: Mapping[str, Figure] = {}
    per_second: float | None = None
    seconds_left: float | None = None


class StageStatus(BaseModel):
    """A stage at work, or how it ended.

    ``alive``: when its process last wrote this; ``moved``: when the work last went on, or ended.
    ``serves``: name under which its model is served. ``error``, ``kind``: sentence and class of
    what it failed of. ``metrics``: its figures, once done.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    digest: str
    state: State
    serves: str
    started: datetime
    alive: datetime
    moved: datetime
    seconds: float = 0.0
    host: str
    workers: int
    doing: Doing | None = None
    error: str = ""
    kind: str = ""
    metrics: Mapping[str, Figure] = {}

    @classmethod
    def begun(cls, stage: str, digest: str, *, serves: str, workers: int) -> StageStatus:
        """Of a stage that this process begins now."""
        now = datetime.now(UTC)
        return cls(
            stage=stage, digest=digest, state="running", serves=serves, started=now, alive=now,
            moved=now, host=socket.gethostname(), workers=workers,
        )  # fmt: skip

    @property
    def silent(self) -> bool:
        """Whether a stage that says it runs has given no sign of life for a minute."""
        return self.state == "running" and datetime.now(UTC) - self.alive > _SILENT


class Record:
    """The status of a stage that is at work here, written by a thread of its own."""

    def __init__(self, path: Path, begun: StageStatus) -> None:
        self._path, self._status = path, begun
        self._lock = threading.Lock()
        self._first: tuple[str, int, datetime] | None = None

    def note(self, event: Event) -> None:
        """A task went on (:func:`terrafine.progress.noted`)."""
        now = datetime.now(UTC)
        doing = Doing.model_validate(event)
        with self._lock:
            before = self._status.doing
            if before is None or before.name != doing.name or before.total != doing.total:
                self._first = None
            elif doing.done != before.done:
                if self._first is None:
                    self._first = doing.name, doing.done, now
                doing = doing.model_copy(update=self._speed(doing, now))
            else:
                doing = doing.model_copy(update=_estimate(before))
            moved = before is None or (doing.name, doing.done) != (before.name, before.done)
            self._status = self._status.model_copy(
                update={"doing": doing, **({"moved": now} if moved else {})}
            )

    def finish(self, metrics: Mapping[str, Any], seconds: float) -> None:
        """The stage is done."""
        self._end(state="done", metrics=dict(metrics), seconds=seconds, doing=None)

    def fail(self, error: BaseException) -> None:
        """The stage failed, or was stopped."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._end(state="stopped", error="stopped by a signal", kind=type(error).__name__)
            return
        if isinstance(error, (TerrafineError, OSError)):
            says = explain(error)
        else:
            says = f"{type(error).__name__}: {error}".splitlines()[0]
        self._end(state="failed", error=says, kind=type(error).__name__)

    def write(self) -> None:
        """Put it where others look; that nobody can be told must not end the work."""
        with self._lock:
            status = self._status
        # not under the lock: the work waits for it, and must not wait for a slow disk
        _write(self._path, status)

    def _speed(self, doing: Doing, now: datetime) -> dict[str, float]:
        assert self._first is not None
        _, done, since = self._first
        seconds = (now - since).total_seconds()
        if doing.done <= done or seconds <= 0:
            return {}
        speed = (doing.done - done) / seconds
        return {"per_second": speed, "seconds_left": (doing.total - doing.done) / speed}

    def _end(self, **changes: object) -> None:
        now = datetime.now(UTC)
        with self._lock:
            seconds = (now - self._status.started).total_seconds()
            ended = {"moved": now, "seconds": seconds, **changes}
            self._status = self._status.model_copy(update=ended)


def _write(path: Path, status: StageStatus) -> None:
    now = status.model_copy(update={"alive": datetime.now(UTC)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.write_text(now.model_dump_json(indent=1), encoding="utf-8")
        temporary.replace(path)


def _estimate(doing: Doing) -> dict[str, float | None]:
    return {"per_second": doing.per_second, "seconds_left": doing.seconds_left}


@contextmanager
def recorded(workdir: Path, begun: StageStatus) -> Iterator[Record]:
    """Keep the status of a stage in ``workdir`` for as long as the block lasts, and how it ends.

    A process that is killed leaves it ``running``, with no more signs of life.
    """
    record, over = Record(workdir / begun.stage / STATUS, begun), threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            record.write()

    record.write()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        with noted(record.note):
            yield record
    except BaseException as error:
        record.fail(error)
        raise
    finally:
        over.set()
        thread.join(BEAT)
        record.write()


def keep_done(
    workdir: Path,
    done: StageStatus,
    *,
    created: datetime,
    seconds: float,
    metrics: Mapping[str, Any],
) -> None:
    """Say of a stage that was found done that it is, where something else is said of it."""
    try:
        there = read_status(workdir / done.stage / STATUS)
    except StageError:
        there = None
    if there is None or (there.digest, there.state) != (done.digest, "done"):
        was = {"started": created - timedelta(seconds=seconds), "moved": created}
        ended = {"state": "done", "seconds": seconds, "metrics": dict(metrics), **was}
        _write(workdir / done.stage / STATUS, done.model_copy(update=ended))


def read_status(path: Path) -> StageStatus | None:
    """What a status file says, None where there is none; StageError when it cannot be read."""
    try:
        return StageStatus.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StageError(
            f"{path}: cannot be read ({type(error).__name__}), so how this stage stands is not "
            "known; delete it, the next run writes it anew"
        ) from error


def read_statuses(workdir: Path) -> dict[str, StageStatus]:
    """Stage -> how it stands, of all stages that were begun in a work directory."""
    found = {}
    for path in sorted(workdir.glob(f"*/{STATUS}")):
        status = read_status(path)
        if status is not None:
            found[status.stage] = status
    return found
