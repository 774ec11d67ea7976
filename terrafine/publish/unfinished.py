"""Folders that appear whole, after work that a kill may interrupt and that then goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from terrafine.errors import MapStoreError


@contextmanager
def unfinished(into: Path, *what: str) -> Iterator[Path]:
    """A hidden folder beside ``into`` that takes its place when the work is done.

    It stays after an error or a kill, and is given again for the same ``what``. MapStoreError when
    ``into`` holds something.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise MapStoreError(f"{into}: already exists and is not empty; name another folder")
    digest = hashlib.sha256("\n".join(what).encode()).hexdigest()[:12]
    partial = into.resolve().with_name(f".{into.name}.partial-{digest}")
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.replace(into)
