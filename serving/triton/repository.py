"""Triton's model repository, in a folder or a bucket, and who was champion when.

::

    <name>/config.pbtxt           which versions are loaded, and which release each is
    <name>/warmup/image           a real window
    <name>/history.json           every promotion and rollback
    <name>/<version>/model.onnx release.json canary.safetensors config.pbtxt
    <name>-candidate/...          the same for the version that is staged

Version numbers only grow. A version that ``<name>/config.pbtxt`` does not name is not served, so
one that was not finished is never seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.triton.config import (
    GRAPH_FILE,
    WARMUP_FILE,
    ModelConfig,
    build_config,
    from_text,
    loaded_together,
    newest,
    parameter,
    renamed,
    to_text,
)
from terrafine.errors import ModelError, ServingError, StorageError
from terrafine.export import Prediction, Release, ReleaseInfo
from terrafine.export.release import CANARY, DESCRIPTION, parse_canary, parse_release
from terrafine.export.session import UInt16Array
from terrafine.export.variants import Variant
from terrafine.spec import ServeSpec
from terrafine.storage import Storage

CONFIG = "config.pbtxt"
_HISTORY = "history.json"


class Event(BaseModel):
    """A version became champion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: Literal["promote", "rollback"]
    version: int
    release: str
    model: str
    at: datetime


class History(BaseModel):
    """Every change of champion, and the number that the next version gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    next_version: int = 1
    events: tuple[Event, ...] = ()

    @property
    def champions(self) -> list[Event]:
        """The champion last, before it those that a rollback would go back to."""
        stack: list[Event] = []
        for event in self.events:
            if event.event == "promote":
                stack.append(event)
            else:
                stack = [one for one in stack if one.version <= event.version]
        return stack


@dataclass(frozen=True)
class Version:
    """One version as it lies in the repository, every file as it was released."""

    number: int
    info: ReleaseInfo
    variant: Variant
    config: ModelConfig
    windows_NCHW: UInt16Array
    answers: Prediction
    files: Mapping[str, bytes]


class ModelFolder:
    """One model of the repository: its versions, and which of them are loaded."""

    def __init__(self, repository: Storage, name: str) -> None:
        self.name = name
        self.storage = repository / name

    def write(self, number: int, files: Mapping[str, bytes]) -> Version:
        """Add a version, whole or not at all, and read it back; StorageError as on a full disk."""
        folder = str(number)
        try:
            self.storage.clear(folder)
            for file, data in files.items():
                self.storage.write(f"{folder}/{file}", data)
            return self.read(number)
        except (StorageError, ModelError, ServingError):
            self.storage.clear(folder)
            raise

    def read(self, number: int) -> Version:
        """A version, once every file is found as it was released; ModelError otherwise."""
        where = f"{self.storage}/{number}"
        files = {
            file: self._require(f"{number}/{file}")
            for file in (GRAPH_FILE, DESCRIPTION, CANARY, CONFIG)
        }
        info = parse_release(files[DESCRIPTION], where=f"{where}/{DESCRIPTION}")
        config = from_text(files[CONFIG].decode(errors="replace"), where=f"{where}/{CONFIG}")
        variant: Variant = parameter(config, "variant", where=where)  # type: ignore[assignment]
        if variant not in info.graphs:
            raise ModelError(f"{where}: its release has no {variant} graph; deploy it again")
        for file, digest in (
            (GRAPH_FILE, info.graphs[variant].sha256),
            (CANARY, info.canary_sha256),
        ):
            found = hashlib.sha256(files[file]).hexdigest()
            if found != digest:
                raise ModelError(
                    f"{where}/{file}: damaged or edited since the release was made (SHA-256 "
                    f"{found[:12]}, not {digest[:12]}); deploy the release again"
                )
        windows_NCHW, answers = parse_canary(files[CANARY], variant, where=f"{where}/{CANARY}")
        return Version(number, info, variant, config, windows_NCHW, answers, files)

    def serve(self, versions: Sequence[Version]) -> None:
        """Let the next load serve these versions, the newest as champion."""
        config = loaded_together({version.number: version.config for version in versions})
        champion = max(versions, key=lambda version: version.number)
        window = champion.windows_NCHW[0].astype("<u2").tobytes()
        self.storage.write(f"warmup/{WARMUP_FILE}", window)
        self.storage.write(CONFIG, to_text(renamed(config, self.name)).encode())

    def serving(self) -> ModelConfig | None:
        """What the next load will serve; None where nothing was ever promoted."""
        data = self.storage.read(CONFIG)
        if data is None:
            return None
        return from_text(data.decode(errors="replace"), where=f"{self.storage}/{CONFIG}")

    def touch(self) -> None:
        """Let the next load load anew what is loaded, although nothing changed.

        Triton looks at the times of the files, and lets a new time of the configuration alone pass.
        """
        window = self._require(f"warmup/{WARMUP_FILE}")
        self.storage.write(f"warmup/{WARMUP_FILE}", window)

    def retire(self) -> None:
        """Let no load serve anything."""
        self.storage.delete([CONFIG])

    def remove(self, number: int) -> None:
        """Delete a version."""
        self.storage.clear(str(number))

    def clear(self) -> None:
        """Delete the model."""
        self.storage.clear()

    def _require(self, file: str) -> bytes:
        data = self.storage.read(file)
        if data is None:
            raise ModelError(f"{self.storage}/{file}: is missing; deploy the release again")
        return data


class ModelRepository:
    """What is served under one name: its champions, and the candidate beside them."""

    def __init__(self, location: str, name: str) -> None:
        self.storage = Storage.at(location)
        self.name = name
        self.champions = ModelFolder(self.storage, name)
        self.candidate = ModelFolder(self.storage, f"{name}-candidate")

    def history(self) -> History:
        """Who was champion when; ServingError where the file was damaged."""
        data = self.champions.storage.read(_HISTORY)
        try:
            return History() if data is None else History.model_validate_json(data)
        except ValidationError as error:
            raise ServingError(
                f"{self.champions.storage}/{_HISTORY}: not as it was written "
                f"({error.errors()[0]['msg']}); restore it from a backup, or deploy under another "
                "serve.name"
            ) from error

    def record(self, history: History) -> None:
        """Keep it."""
        self.champions.storage.write(_HISTORY, history.model_dump_json(indent=1).encode())

    def stage(self, release: Release, spec: ServeSpec) -> Version:
        """Write a release as the candidate's only version, under a number never used before.

        Raises ModelError where release and configuration do not fit, StorageError as on a full
        disk; the candidate that was there is gone then, champions are never touched.
        """
        history = self.history()
        number = history.next_version
        files = {
            GRAPH_FILE: release.graph(spec.variant).read_bytes(),
            DESCRIPTION: (release.folder / DESCRIPTION).read_bytes(),
            CANARY: (release.folder / CANARY).read_bytes(),
            CONFIG: to_text(build_config(release, spec, version=number)).encode(),
        }
        self.record(history.model_copy(update={"next_version": number + 1}))
        self.candidate.clear()
        try:
            staged = self.candidate.write(number, files)
            self.candidate.serve([staged])
        except StorageError:
            self.candidate.clear()
            raise
        return staged

    def staged(self) -> Version:
        """The candidate; ServingError where there is none."""
        config = self.candidate.serving()
        if config is None:
            raise ServingError(
                f"{self.candidate.storage}: no candidate is staged; stage one with "
                "`terrafine deploy`"
            )
        return self.candidate.read(newest(config))
