"""One change of a served model at a time, whoever makes it and from whichever machine.

Each of those who want to says so in an object of their own beside the model
(``<name>.lock.<id>``), then looks whether there is another: of two at least one sees the other.
Nothing but a store that lists what was written is asked for, so a folder will do as a bucket does.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from terrafine.errors import ServingError, StorageError
from terrafine.storage import Storage

# seconds without a sign of life after which a holder is dead; clocks must not differ by more
LEASE = 60.0
_TRIES = 4
_LONGEST_PAUSE = 0.5


class LockedError(ServingError):
    """Somebody else is changing what is served under this name, or has begun to meanwhile."""


class Holder(BaseModel):
    """Who is at work on a model, since when, and when they last said so."""

    model_config = ConfigDict(frozen=True)

    who: str
    verb: str
    since: datetime
    seen: datetime

    @classmethod
    def here(cls, verb: str) -> Self:
        """This process."""
        now = datetime.now(UTC)
        return cls(
            who=f"process {os.getpid()} on {socket.gethostname()}", verb=verb, since=now, seen=now
        )

    @property
    def silent_seconds(self) -> float:
        """Since the last sign of life."""
        return (datetime.now(UTC) - self.seen).total_seconds()


@contextmanager
def locked(
    storage: Storage, name: str, verb: str, *, lease: float = LEASE
) -> Iterator[Callable[[], None]]:
    """Let nobody else change the model ``name`` of a repository meanwhile.

    Raises LockedError, which names who is at work on it. One who was killed is forgotten ``lease``
    seconds after the last sign of life. The function that is given raises LockedError where that
    has happened to us.
    """
    holder = Holder.here(verb)
    mine = f"{name}.lock.{uuid.uuid4().hex}"

    def require() -> None:
        if storage.read(mine) is None:
            raise LockedError(
                f"{storage}/{name}: this process gave no sign of life for {lease:.0f} s, so that "
                f"others may change the model by now; {verb} again"
            )

    with ExitStack() as stack:
        stack.callback(_release, storage, mine)
        _acquire(storage, name, mine, holder, lease=lease)
        stack.enter_context(_renewed(storage, mine, holder, every=lease / 6))
        yield require


def _acquire(storage: Storage, name: str, mine: str, holder: Holder, *, lease: float) -> None:
    for last in (False,) * (_TRIES - 1) + (True,):
        _write(storage, mine, holder)
        other = _other(storage, name, mine, lease=lease)
        if other is None:
            return
        storage.delete([mine])
        if last:
            raise LockedError(
                f"{storage}/{name}: {other.who} is at work on it ({other.verb} since "
                f"{other.since:%F %T} UTC, last seen {other.silent_seconds:.0f} s ago); try again "
                f"once it is done (one that was killed is forgotten after {lease:.0f} s)"
            )
        # two that begin in one moment step back both, and come again one after the other
        time.sleep(random.uniform(0.1, 1.0) * _LONGEST_PAUSE)


def _other(storage: Storage, name: str, mine: str, *, lease: float) -> Holder | None:
    """Who else is at work; what the dead have left is removed."""
    for found in storage.names():
        if not found.startswith(f"{name}.lock.") or found == mine:
            continue
        data = storage.read(found)
        if data is None:
            continue
        try:
            holder = Holder.model_validate_json(data)
        except ValidationError as error:
            raise ServingError(
                f"{storage}/{found}: not a lock as terrafine writes it; remove it where nobody "
                "is at work on the model"
            ) from error
        if holder.silent_seconds < lease:
            return holder
        storage.delete([found])
    return None


@contextmanager
def _renewed(storage: Storage, mine: str, holder: Holder, *, every: float) -> Iterator[None]:
    """Signs of life, until the end."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(every):
            # a store that is away for a moment: the next one says it
            with contextlib.suppress(StorageError):
                if storage.read(mine) is not None:
                    _write(storage, mine, holder.model_copy(update={"seen": datetime.now(UTC)}))

    thread = threading.Thread(target=renew, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _release(storage: Storage, mine: str) -> None:
    # where this fails it is forgotten like that of the dead
    with contextlib.suppress(StorageError):
        storage.delete([mine])


def _write(storage: Storage, mine: str, holder: Holder) -> None:
    storage.write(mine, holder.model_dump_json().encode())
