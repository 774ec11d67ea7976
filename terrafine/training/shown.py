"""The progress bar of a training: one for all workers, moved a few times a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from terrafine.progress import Task, progress
from terrafine.training.group import Group

_PAUSE = 0.2


class Shown:
    """Passes steps on to a task, several at a time where they are short."""

    def __init__(self, task: Task | None) -> None:
        self._task = task
        self._steps = 0
        self._at = 0.0
        self._figures: dict[str, float | str] = {}

    def advance(self, steps: int = 1, **figures: float | str) -> None:
        """So many more steps are done; ``figures`` stay beside the bar until they change."""
        self._steps += steps
        self._figures |= figures
        if time.monotonic() - self._at > _PAUSE:
            self.flush()

    def show(self, **figures: float | str) -> None:
        """Other figures, at once."""
        self._figures |= figures
        self.flush()

    def flush(self) -> None:
        """Pass on what is done."""
        if self._task is not None:
            self._task.advance(self._steps, **self._figures)
        self._steps, self._at = 0, time.monotonic()


@contextmanager
def shown(heading: str, *, total: int, group: Group) -> Iterator[Shown]:
    """The leader's bar of ``total`` steps; nothing on the other workers."""
    if not group.leads:
        yield Shown(None)
        return
    with progress(heading, total=total, unit="step") as task:
        bar = Shown(task)
        yield bar
        bar.flush()
