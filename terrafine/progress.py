"""Progress of long work: a bar for a person, JSON lines for the process that started this one.

A stage says ``with progress("train", total=40, unit="epoch") as task: task.advance(loss=0.3)``
and does not know who watches. Where ``TERRAFINE_EVENTS`` names a file (a stage that the pipeline
started in a process of its own), each step is appended to it as one JSON line; on a terminal a
bar is drawn; otherwise a line is logged every ten seconds. A worker on another machine hands its
events to ``forwarded``, and the process that waits for it shows them with ``replay``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVENTS_VARIABLE = "TERRAFINE_EVENTS"

Event = Mapping[str, object]
Send = Callable[[Event], None]

log = logging.getLogger(__name__)
_FORWARD: ContextVar[Send | None] = ContextVar("forward", default=None)
_NOTE: ContextVar[Send | None] = ContextVar("note", default=None)


class Task(ABC):
    """One piece of long work that is under way."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._event: Event = {"name": name, "total": total, "unit": unit}
        self._done = 0
        self._figures: Mapping[str, object] = {}
        self._note = _NOTE.get()
        self._tell(0, "")

    def advance(self, steps: int = 1, **shown: float | str) -> None:
        """Report ``steps`` more done; ``shown`` appears beside the bar."""
        self.show(self._done + steps, describe(shown))

    def show(self, done: int, shown: str, figures: Mapping[str, object] | None = None) -> None:
        """Report ``done`` steps in all, which may be fewer than before where work was lost.

        ``figures``: what ``shown`` says, for machines.
        """
        self._done, self._figures = done, figures or {}
        self._draw(done, shown)
        self._tell(done, shown)

    def _tell(self, done: int, shown: str) -> None:
        if self._note is not None:
            self._note({**self._event, "done": done, "shown": shown, "figures": self._figures})

    @abstractmethod
    def _draw(self, done: int, shown: str) -> None: ...


def bars(console: Console) -> Progress:
    """The bar layout used everywhere."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[shown]}"),
        console=console,
    )


@contextmanager
def progress(name: str, *, total: int, unit: str, drawn: bool = True) -> Iterator[Task]:
    """Report ``total`` steps of ``unit`` under the heading ``name``.

    ``drawn``: False where the caller draws them itself, and they are only to be noted.
    """
    send = _sender()
    if not drawn:
        yield _UndrawnTask(name, total, unit)
    elif send is not None:
        yield _EventTask(send, name, total, unit)
    elif on_terminal():
        with bars(Console(stderr=True)) as screen:
            yield _BarTask(screen, name, total, unit)
    else:
        yield _LogTask(name, total, unit)


def on_terminal() -> bool:
    """Whether a person watches this process itself."""
    return _sender() is None and sys.stderr.isatty()


def announce(**event: object) -> None:
    """Tell the process that started this one of a stage begun, done or failed."""
    send = _sender()
    if send is not None:
        send(event)
    else:
        log.info("%s", event)


def warn(sentence: str) -> None:
    """Tell whoever watches of something that does not stop the work."""
    send = _sender()
    if send is not None:
        send({"warning": sentence})
    else:
        log.warning("%s", sentence)


@contextmanager
def forwarded(send: Send) -> Iterator[None]:
    """Hand all events of this thread to ``send``, which takes them to another process."""
    token = _FORWARD.set(send)
    try:
        yield
    finally:
        _FORWARD.reset(token)


@contextmanager
def noted(note: Send) -> Iterator[None]:
    """Hand each state of each task that this thread begins to ``note`` too, drawn or not."""
    token = _NOTE.set(note)
    try:
        yield
    finally:
        _NOTE.reset(token)


@contextmanager
def replay() -> Iterator[Send]:
    """Show here what another process hands to :func:`forwarded`, event by event."""
    with ExitStack() as drawn:
        heading: tuple[object, ...] | None = None
        task: Task | None = None

        def draw(event: Event) -> None:
            nonlocal heading, task
            if "warning" in event:
                warn(str(event["warning"]))
                return
            if "name" not in event:
                announce(**event)
                return
            name, total, unit = event["name"], event["total"], event["unit"]
            assert isinstance(total, int)
            if task is None or heading != (name, total, unit):
                drawn.close()
                heading = (name, total, unit)
                task = drawn.enter_context(progress(str(name), total=total, unit=str(unit)))
            done = event["done"]
            assert isinstance(done, int)
            task.show(done, str(event["shown"]))

        yield draw


def _sender() -> Send | None:
    """Where events go, or None where a person is to see them here."""
    events = os.environ.get(EVENTS_VARIABLE)
    return _FORWARD.get() or (partial(_append, Path(events)) if events else None)


def _append(path: Path, event: Event) -> None:
    # Work must not fail because nobody can be told of it: the disk may be full.
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def describe(shown: dict[str, float | str]) -> str:
    """``{"loss": 0.31415}`` -> "loss 0.314"."""
    return "  ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )


def figures(metrics: Mapping[str, object]) -> str:
    """The figures of a stage on one line; digests by their first twelve digits."""
    digests = {k: str(v)[:12] if len(str(v)) == 64 else v for k, v in metrics.items()}
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in digests.items())


class _UndrawnTask(Task):
    def _draw(self, done: int, shown: str) -> None:
        pass


class _EventTask(Task):
    def __init__(self, send: Send, name: str, total: int, unit: str) -> None:
        super().__init__(name, total, unit)
        self._send = send
        self._draw(0, "")

    def _draw(self, done: int, shown: str) -> None:
        figures = {"figures": dict(self._figures)} if self._figures else {}
        self._send({**self._event, "done": done, "shown": shown, **figures})


class _BarTask(Task):
    def __init__(self, drawn: Progress, name: str, total: int, unit: str) -> None:
        super().__init__(name, total, unit)
        self._drawn = drawn
        self._id = drawn.add_task(name, total=total, unit=unit, shown="")

    def _draw(self, done: int, shown: str) -> None:
        self._drawn.update(self._id, completed=done, shown=shown)


class _LogTask(Task):
    def __init__(self, name: str, total: int, unit: str) -> None:
        super().__init__(name, total, unit)
        self._name, self._total, self._unit = name, total, unit
        self._last = time.monotonic()

    def _draw(self, done: int, shown: str) -> None:
        now = time.monotonic()
        if now - self._last > 10 or done == self._total:
            self._last = now
            log.info("%s: %d/%d %s  %s", self._name, done, self._total, self._unit, shown)
