"""What a killed training goes on from: everything after the last full epoch, in one file."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrafine.errors import TrainingError

FILE_NAME = "last.pt"


@dataclass(frozen=True)
class Checkpoint:
    """State after a full epoch. ``history`` has one record per epoch, as plain numbers.

    No random state is in it: crops are pure functions of the epoch, and torch's generator is
    seeded anew in every epoch.
    """

    fingerprint: str
    history: list[dict[str, Any]]
    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    best_epoch: int
    best_state: dict[str, Tensor]


def fingerprint(**parts: Any) -> str:
    """SHA-256 over everything that a training's outcome depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint in one step; TrainingError when it cannot be written."""
    path = folder / FILE_NAME
    partial = path.with_suffix(".partial")
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                torch.save(fields, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    # torch wraps what the disk says in a RuntimeError
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"{path}: the checkpoint cannot be written: {_first_line(error)}; "
            "free space, or choose a folder that can be written to"
        ) from error


def load_checkpoint(folder: Path, expected: str) -> Checkpoint | None:
    """The folder's checkpoint, or None where there is none yet.

    Raises TrainingError when it cannot be read or belongs to a training with another
    ``fingerprint`` than ``expected``.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**fields)
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{path}: the checkpoint cannot be read: {_first_line(error)}; "
            "delete it to train from the start"
        ) from error
    if checkpoint.fingerprint != expected:
        raise TrainingError(
            f"{path}: the checkpoint belongs to a training with other settings, chips or network; "
            "delete it to train from the start, or train into another folder"
        )
    return checkpoint


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
