"""Triton's model repository, in a folder or a bucket, and who was champion when.

::

    <name>/config.pbtxt           which versions are loaded, and which release each is
    <name>/warmup/image           a real window
    <name>/history.json           every promotion and rollback, and the one that is under way
    <name>/<version>/model.onnx release.json canary.safetensors config.pbtxt
    <name>-candidate/...          the same for the version that is staged
    <name>.lock.<id>              who is changing any of it (serving.triton.lock)

Version numbers only grow. A version that ``<name>/config.pbtxt`` does not name is not served, so
one that was not finished is never seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.triton.config import (
    GRAPH_FILE,
    WARMUP_FILE,
    ModelConfig,
    build_config,
    from_text,
    graph_of,
    loaded_together,
    newest,
    parameter,
    renamed,
    to_text,
)
from serving.triton.lock import LEASE, LockedError, locked
from terrafine.errors import ModelError, ServingError, StorageError
from terrafine.export import Prediction, Release, ReleaseInfo
from terrafine.export.release import CANARY, DESCRIPTION, parse_canary, parse_release
from terrafine.export.session import UInt16Array, Variant
from terrafine.spec import ServeSpec
from terrafine.storage import Storage

CONFIG = "config.pbtxt"
_HISTORY = "history.json"
# what a graph's metadata and its release both say
_STATED = ("window", "scale", "fill", "legend", "model")


class Event(BaseModel):
    """A version became champion, or is about to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: Literal["promote", "rollback"]
    version: int
    release: str
    model: str
    at: datetime


class History(BaseModel):
    """Every change of champion, and the number that the next version gets.

    ``begun``: a change that has not ended; where nobody is at work on it any more, it is undone by
    the next who looks. ``configs``: version -> SHA-256 of the configuration it was staged with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    next_version: int = 1
    events: tuple[Event, ...] = ()
    begun: Event | None = None
    configs: dict[int, str] = {}

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

    def read(self, number: int, *, config_sha256: str | None = None) -> Version:
        """A version, once every file is found as it was released; ModelError otherwise.

        ``config_sha256``: of the configuration that it was staged with, where that is known.
        """
        where = f"{self.storage}/{number}"
        files = {
            file: self._require(f"{number}/{file}")
            for file in (GRAPH_FILE, DESCRIPTION, CANARY, CONFIG)
        }
        if config_sha256 is not None:
            _require_digest(files[CONFIG], config_sha256, where=f"{where}/{CONFIG}")
        info = parse_release(files[DESCRIPTION], where=f"{where}/{DESCRIPTION}")
        config = from_text(files[CONFIG].decode(errors="replace"), where=f"{where}/{CONFIG}")
        variant: Variant = parameter(config, "variant", where=where)  # type: ignore[assignment]
        if variant not in info.graphs:
            raise ModelError(f"{where}: its release has no {variant} graph; deploy it again")
        _require_release(config, number, info, where=f"{where}/{CONFIG}")
        _require_digest(
            files[GRAPH_FILE], info.graphs[variant].sha256, where=f"{where}/{GRAPH_FILE}"
        )
        _require_digest(files[CANARY], info.canary_sha256, where=f"{where}/{CANARY}")
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

    def names(self, number: int) -> bool:
        """Whether the next load will serve a version."""
        config = self.serving()
        return config is not None and number in config.version_policy.specific.versions

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
    """What is served under one name: its champions, and the candidate beside them.

    ``lease``: seconds after which one who was killed at work on it is forgotten.
    """

    def __init__(self, location: str, name: str, *, lease: float = LEASE) -> None:
        self.storage = Storage.at(location)
        self.name = name
        self._lease = lease
        self._served: tuple[ModelConfig, Version] | None = None
        self.champions = ModelFolder(self.storage, name)
        self.candidate = ModelFolder(self.storage, f"{name}-candidate")

    def locked(self, verb: str) -> AbstractContextManager[Callable[[], None]]:
        """Let nobody else change it meanwhile (:func:`serving.triton.lock.locked`)."""
        return locked(self.storage, self.name, verb, lease=self._lease)

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

    def record(self, history: History, *, after: History) -> History:
        """Keep it; LockedError where it is not ``after`` any more that it follows."""
        if self.history() != after:
            raise LockedError(
                f"{self.champions.storage}/{_HISTORY}: somebody else changed the champion "
                "meanwhile; look at `terrafine status` before you go on"
            )
        self.champions.storage.write(_HISTORY, history.model_dump_json(indent=1).encode())
        return history

    def begin(self, event: Literal["promote", "rollback"], version: Version) -> History:
        """Say that a version is about to become champion, before anything is changed."""
        history = self.history()
        begun = Event(
            event=event,
            version=version.number,
            release=version.info.digest,
            model=version.info.model,
            at=datetime.now(UTC),
        )
        return self.record(history.model_copy(update={"begun": begun}), after=history)

    def end(self, history: History) -> Event:
        """What was begun is done."""
        assert history.begun is not None
        event = history.begun.model_copy(update={"at": datetime.now(UTC)})
        done = {"events": (*history.events, event), "begun": None}
        self.record(history.model_copy(update=done), after=history)
        return event

    def read(self, number: int) -> Version:
        """A version that is or was champion, as it was staged; ModelError otherwise."""
        return self.champions.read(number, config_sha256=self.history().configs.get(number))

    def served(self) -> Version | None:
        """The version that servers are told to give to those who name none.

        Its files are read when it is first asked for, and again once the configuration is another.
        """
        config = self.champions.serving()
        if config is None:
            return None
        if self._served is None or self._served[0] != config:
            self._served = config, self.read(newest(config))
        return self._served[1]

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
        configs = history.configs | {number: hashlib.sha256(files[CONFIG]).hexdigest()}
        self.record(
            history.model_copy(update={"next_version": number + 1, "configs": configs}),
            after=history,
        )
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
        number = newest(config)
        history = self.history()
        if self.champions.names(number) or any(one.version == number for one in history.events):
            raise ServingError(
                f"{self.candidate.storage}/{number}: version {number} has been champion already; "
                "deploy the release again, as a new version"
            )
        return self.candidate.read(number, config_sha256=history.configs.get(number))


def _require_digest(data: bytes, digest: str, *, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ModelError(
            f"{where}: damaged or edited since the release was deployed (SHA-256 {found[:12]}, "
            f"not {digest[:12]}); deploy the release again"
        )


def _require_release(config: ModelConfig, number: int, info: ReleaseInfo, *, where: str) -> None:
    """ModelError unless a version's configuration says what its release does."""
    release = parameter(config, f"release.{number}", where=where)
    graph = graph_of(config, number, where=where)
    same = all(getattr(graph, key) == getattr(info, key) for key in _STATED)
    if release != info.digest or graph.band_names != info.bands or not same:
        raise ModelError(
            f"{where}: edited, it says another release, window, fill number or legend than "
            f"release {info.digest[:12]} beside it; deploy the release again"
        )
