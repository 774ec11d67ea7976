"""Whether ``training.storage`` is one place for all machines, asked before anything is trained."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from terrafine.errors import StorageError, TrainingError
from terrafine.storage import Storage
from terrafine.training import patiently


@contextmanager
def marked(storage: Storage) -> Iterator[str]:
    """The name of an object that lies in ``storage`` meanwhile, as none ever did before.

    StorageError where it cannot be written.
    """
    name = f"shared-{secrets.token_hex(8)}"
    storage.write(name, b"by all machines")
    try:
        yield name
    finally:
        # what is left in a storage that is gone by now is removed with the checkpoints
        with suppress(StorageError):
            storage.delete([name])


def require_shared(storage: Storage, mark: str) -> None:
    """TrainingError where this machine does not see what the driver has written."""
    if patiently(lambda: storage.read(mark)) is None:
        raise TrainingError(
            f"{storage}: the machine {socket.gethostname()} does not see there what the one that "
            "started the training has written; give training.storage a place that all machines "
            "reach"
        )
