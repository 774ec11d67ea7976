"""The processes that a process started, which Linux lists in /proc."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def family(pid: int) -> set[int]:
    """Ids of a process's children, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name stands in brackets, and may hold blanks
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def command(pid: int) -> str:
    """What a process was started as, or calls itself; empty when it is gone."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def living(pids: Iterable[int], *, seconds: float) -> set[int]:
    """Those that have not ended (zombies have) after at most so many seconds."""
    deadline = time.monotonic() + seconds
    left = {pid for pid in pids if command(pid)}
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = {pid for pid in left if command(pid)}
    return left
