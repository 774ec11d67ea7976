"""Progress of long work: a bar for a person, JSON lines for the process that started this one.

A stage says ``with progress("train", total=40, unit="epoch") as task: task.advance(loss=0.3)``
and does not know who watches. Where ``TERRAFINE_EVENTS`` names a file (a stage that the pipeline
started in a process of its own), each step is appended to it as one JSON line; on a terminal a
bar is drawn; otherwise a line is logged every ten seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

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

log = logging.getLogger(__name__)


class Task(Protocol):
    """One piece of long work that is under way."""

    def advance(self, steps: int = 1, **shown: float | str) -> None:
        """Report ``steps`` more done; ``shown`` appears beside the bar."""


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
def progress(name: str, *, total: int, unit: str) -> Iterator[Task]:
    """Report ``total`` steps of ``unit`` under the heading ``name``."""
    events = os.environ.get(EVENTS_VARIABLE)
    if events:
        yield _EventTask(Path(events), name, total, unit)
    elif sys.stderr.isatty():
        with bars(Console(stderr=True)) as drawn:
            yield _BarTask(drawn, name, total, unit)
    else:
        yield _LogTask(name, total, unit)


def announce(**event: object) -> None:
    """Tell the process that started this one of a stage begun, done or failed."""
    events = os.environ.get(EVENTS_VARIABLE)
    if events:
        _append(Path(events), event)
    else:
        log.info("%s", event)


def _append(path: Path, event: Mapping[str, object]) -> None:
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


class _EventTask:
    def __init__(self, path: Path, name: str, total: int, unit: str) -> None:
        self._path, self._event = path, {"name": name, "total": total, "unit": unit}
        self._done = 0
        self._write("")

    def advance(self, steps: int = 1, **shown: float | str) -> None:
        self._done += steps
        self._write(describe(shown))

    def _write(self, shown: str) -> None:
        _append(self._path, {**self._event, "done": self._done, "shown": shown})


class _BarTask:
    def __init__(self, drawn: Progress, name: str, total: int, unit: str) -> None:
        self._drawn = drawn
        self._id = drawn.add_task(name, total=total, unit=unit, shown="")

    def advance(self, steps: int = 1, **shown: float | str) -> None:
        self._drawn.update(self._id, advance=steps, shown=describe(shown))


class _LogTask:
    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done, self._last = 0, time.monotonic()

    def advance(self, steps: int = 1, **shown: float | str) -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._last > 10 or self._done == self._total:
            self._last = now
            log.info(
                "%s: %d/%d %s  %s", self._name, self._done, self._total, self._unit, describe(shown)
            )
