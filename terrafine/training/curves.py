"""``steps.csv`` and ``history.json`` in a training's storage: never ahead of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Any

from terrafine.storage import Storage
from terrafine.training.history import StepRecord

STEPS = "steps.csv"
HISTORY = "history.json"
_HEADER = ",".join(field.name for field in fields(StepRecord))


class Curves:
    """The rows of a training's steps, written whole with every checkpoint.

    They are written before the checkpoint and cut to it when the training goes on from there, so
    that a killed training has neither gaps nor doubles.
    """

    def __init__(self, storage: Storage, *, resumed_at: int) -> None:
        self._storage = storage
        self._rows = _rows_until(storage.read(STEPS), resumed_at) if resumed_at else []

    def add(self, record: StepRecord) -> None:
        """One more step."""
        self._rows.append(_row(record))

    def write(self, history: Sequence[dict[str, Any]]) -> None:
        """Write both files; StorageError when they cannot be."""
        self._storage.write(STEPS, "\n".join([_HEADER, *self._rows, ""]).encode())
        self._storage.write(HISTORY, json.dumps(history, indent=1).encode())


def _row(record: StepRecord) -> str:
    values = astuple(record)
    return ",".join(f"{v:.7g}" if isinstance(v, float) else str(v) for v in values)


def _rows_until(content: bytes | None, step: int) -> list[str]:
    lines = (content or b"").decode(errors="replace").splitlines()
    if not lines or lines[0] != _HEADER:
        return []
    numbered = (line for line in lines[1:] if line.partition(",")[0].isdecimal())
    return [line for line in numbered if int(line.partition(",")[0]) <= step]
