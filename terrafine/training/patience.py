"""Waiting for what another machine wrote."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

# as long as a network file system may show an old listing
SECONDS_TO_APPEAR = 90.0
_SECONDS_BETWEEN_LOOKS = 1.0


def patiently(look: Callable[[], Found | None]) -> Found | None:
    """What ``look`` finds, at once or while a network file system may still hide it, or None."""
    until = time.monotonic() + SECONDS_TO_APPEAR
    while (found := look()) is None and time.monotonic() < until:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return found
