"""Progress of a training on other machines, brought to the terminal that waits for it.

The worker sends, the driver asks, and an actor between them keeps what is not yet asked for: of a
bar only its newest state, of everything else (warnings, restarts) every word.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from terrafine.progress import Event, Send

# a person's eye, not a machine's
_SECONDS_BETWEEN = 0.25


class Mailbox:
    """What the actor does: takes events and gives them away once."""

    def __init__(self) -> None:
        self._bar: Event | None = None
        self._told: list[Event] = []
        self._workers = 0

    def put(self, event: Event) -> None:
        """Take an event from a worker."""
        if "name" in event:
            self._bar = event
        else:
            self._told.append(event)

    def began(self, workers: int) -> None:
        """A group of so many workers began; it is told where the one before had another number."""
        if self._workers not in (0, workers):
            self._told.append(
                {
                    "warning": f"{workers} workers go on from the last checkpoint, where there "
                    f"were {self._workers} before"
                }
            )
        self._workers = workers

    def take(self) -> list[Event]:
        """What came in since the last time: first what was said, then the bar."""
        events = [*self._told, *([self._bar] if self._bar is not None else [])]
        self._told, self._bar = [], None
        return events


@dataclass
class Relay:
    """The actor's address, which goes to workers as it is."""

    actor: ActorHandle[Mailbox]

    @classmethod
    def start(cls) -> Relay:
        """A new one on the connected cluster, which takes no processor of its own.

        Where its machine is lost it starts anew on another one, empty.
        """
        actor = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).remote()
        return cls(cast(ActorHandle[Mailbox], actor))

    def send(self, event: Event) -> None:
        """Hand over an event, which is not waited for: nobody need watch for work to go on."""
        self.actor.put.remote(event)

    def began(self, workers: int) -> None:
        """Tell of a group that begins, which is not waited for."""
        self.actor.began.remote(workers)

    def sender(self) -> Send:
        """For :func:`terrafine.progress.forwarded`; drops states of a bar that nobody would see."""
        last = 0.0

        def send(event: Event) -> None:
            nonlocal last
            now = time.monotonic()
            if "name" in event and now - last < _SECONDS_BETWEEN and not _ends(event):
                return
            last = now
            self.send(event)

        return send

    def take(self, *, seconds: float) -> list[Event]:
        """What came in; the empty list where the actor does not answer in time."""
        try:
            events: list[Event] = ray.get(self.actor.take.remote(), timeout=seconds)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
            return []
        return events


def _ends(event: Event) -> bool:
    done: Any = event["done"]
    return bool(done in (0, event["total"]))
