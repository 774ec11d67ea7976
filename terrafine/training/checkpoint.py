"""What a killed training goes on from: all of it as one object, believed only with its digest.

``checkpoints/<step>.pt`` holds the state and is written first; ``checkpoints/<step>.json`` holds
its SHA-256. A state without a matching digest is never loaded: the one before is. The last two
are kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from terrafine.errors import LossError, StorageError, TrainingError
from terrafine.storage import Storage
from terrafine.training.patience import patiently

FOLDER = "checkpoints"
KEPT = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """State after optimiser step ``step`` of the whole training, ``epoch_step`` of its epoch.

    ``identity`` says by digests what the training is of. ``history`` has one record per full
    epoch, as plain numbers; ``sums`` add up the unfinished epoch ``len(history) + 1``.
    ``average`` is the running mean of the weights, empty where none is kept. ``best_epoch`` is 0
    before the first full epoch. No random state is in it: crops and torch's seed are pure
    functions of the step, and the learning rate is one too.
    """

    identity: dict[str, str]
    step: int
    epoch_step: int
    sums: dict[str, float]
    history: list[dict[str, Any]]
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, Any]
    best_epoch: int
    best_state: dict[str, Tensor]


class _Digest(BaseModel):
    """What stands beside a state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    sha256: str


def identify(**parts: Any) -> dict[str, str]:
    """SHA-256 of each of the parts that a training's outcome depends on."""
    return {
        name.replace("_", " "): hashlib.sha256(
            json.dumps(part, sort_keys=True).encode()
        ).hexdigest()
        for name, part in parts.items()
    }


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training in its storage folder."""

    storage: Storage

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one and remove all but the last two.

        Raises StorageError when it cannot be written, LossError when a weight is no number.
        """
        for name, value in checkpoint.model.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise LossError(
                    f"{name} is no longer finite after step {checkpoint.step}, so that no "
                    f"checkpoint is written; lower training.learning_rate; {self.kept()}"
                )
        buffer = io.BytesIO()
        torch.save({f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}, buffer)
        state = buffer.getvalue()
        digest = _Digest(step=checkpoint.step, sha256=hashlib.sha256(state).hexdigest())
        try:
            self.storage.write(_state_name(checkpoint.step), state)
            self.storage.write(_digest_name(checkpoint.step), digest.model_dump_json().encode())
            self._keep_last(checkpoint.step)
        except StorageError as error:
            raise StorageError(
                f"the checkpoint of step {checkpoint.step} cannot be written: {error}; "
                f"{self.kept()}"
            ) from error

    def load(self, expected: Mapping[str, str]) -> Checkpoint | None:
        """The newest whole one, or None where there is none yet.

        Raises TrainingError when there are some but none is whole, and when it belongs to another
        training than ``expected`` (see :func:`identify`).
        """
        checkpoint = self.newest()
        if checkpoint is None:
            return None
        found = checkpoint.identity
        other = [part for part in {**expected, **found} if expected.get(part) != found.get(part)]
        if other:
            raise TrainingError(
                f"{self.storage}/{_state_name(checkpoint.step)}: the checkpoint belongs to "
                f"another training: its {' and '.join(other)} {'is' if len(other) == 1 else 'are'} "
                f"not the same; delete {self.storage} to train from the start, or train into "
                "another folder"
            )
        return checkpoint

    def of(self, step: int) -> Checkpoint:
        """That of ``step``, which another machine has seen; StorageError where it stays away."""
        state = patiently(lambda: self._whole(step))
        if state is None:
            raise StorageError(
                f"{self.storage}/{_state_name(step)}: the first worker goes on from this "
                "checkpoint, but another one does not see it; give training.storage a place that "
                "all of them reach"
            )
        return _parse(f"{self.storage}/{_state_name(step)}", state)

    def newest(self) -> Checkpoint | None:
        """The newest whole one of any training; TrainingError when there are some, none whole."""
        steps = self.steps()
        for step in reversed(steps):
            state = self._whole(step)
            if state is not None:
                return _parse(f"{self.storage}/{_state_name(step)}", state)
            log.warning(
                "%s/%s is skipped: its bytes are not those once written",
                self.storage,
                _state_name(step),
            )
        if steps:
            raise TrainingError(
                f"{self.storage}/{_state_name(steps[-1])}: the checkpoint is damaged (its SHA-256 "
                f"differs), and no other is whole; delete {self.storage} to train from the start"
            )
        return None

    def steps(self) -> list[int]:
        """Steps that have a state with a digest, whole or not, in order."""
        names = set(self.storage.names(FOLDER))
        stems = {PurePosixPath(name).stem for name in names if name.endswith(".json")}
        return sorted(
            int(stem) for stem in stems if stem.isdecimal() and _state_name(int(stem)) in names
        )

    def kept(self) -> str:
        """What a person may rely on after a failure."""
        try:
            steps = self.steps()
        except StorageError:
            return "earlier checkpoints were not touched"
        if not steps:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {steps[-1]} is kept in {self.storage}"

    def _whole(self, step: int) -> bytes | None:
        """The bytes of a state that are those once written, or None."""
        state, digest = (self.storage.read(name(step)) for name in (_state_name, _digest_name))
        if state is None or digest is None:
            return None
        try:
            expected = _Digest.model_validate_json(digest)
        except ValidationError:
            return None
        return state if hashlib.sha256(state).hexdigest() == expected.sha256 else None

    def _keep_last(self, newest: int) -> None:
        """Remove what is older, of a killed write, or damaged and so newer than ``newest``."""
        kept = [step for step in self.steps() if step <= newest][-KEPT:]
        wanted = {name(step) for step in kept for name in (_state_name, _digest_name)}
        self.storage.delete(sorted(set(self.storage.names(FOLDER)) - wanted))


def _parse(place: str, state: bytes) -> Checkpoint:
    try:
        return Checkpoint(**torch.load(io.BytesIO(state), map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"{place}: the checkpoint cannot be read by this version ({first}); delete it to "
            "train from the start"
        ) from error


def _state_name(step: int) -> str:
    return f"{FOLDER}/{step:09d}.pt"


def _digest_name(step: int) -> str:
    return f"{FOLDER}/{step:09d}.json"
