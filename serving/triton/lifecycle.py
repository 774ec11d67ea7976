"""From a release to the champion that clients get, and back: stage, canary, promote, roll back.

The repository is the truth and servers follow it: what ``config.pbtxt`` names is loaded at every
start of a server. A version is first served under ``<name>-candidate``, where no client looks, and
has to give the answers recorded at export; only then does ``<name>`` load it. Triton loads the new
version before it drops an old one, so that clients notice nothing but the version in the answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from serving.triton.config import newest, parameter
from serving.triton.endpoint import BusyError, Endpoint
from serving.triton.repository import Event, History, ModelRepository, Version
from terrafine.errors import ModelError, ServingError, TerrafineError
from terrafine.export import Prediction, Release
from terrafine.export.parity import compare
from terrafine.legend import UInt8Array
from terrafine.spec import ServeSpec


class Canary(BaseModel):
    """How a served version's answers compare with those recorded at export.

    ``verdict``: "passed"; "differs" where they are not near enough; "silent" where the version did
    not answer; "busy" where its queue let nobody in. ``exact``: every byte is the same;
    ``reason``: of a verdict other than "passed".
    """

    model_config = ConfigDict(frozen=True)

    verdict: Literal["passed", "differs", "silent", "busy"]
    exact: bool = False
    class_agreement: float = 0.0
    max_probability_error: float = 1.0
    seconds: float = 0.0
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it says what it should."""
        return self.verdict == "passed"


class ServerStatus(BaseModel):
    """One server: whether it is live, its versions of the model, and the champion's canary."""

    address: str
    live: bool
    versions: dict[int, str] = {}
    canary: Canary | None = None


class Status(BaseModel):
    """What is served under a name, and what each server makes of it.

    ``champion``, ``before``: by the history; ``serving``: the version that servers are told to
    give to those who name none.
    """

    name: str
    repository: str
    champion: Event | None
    before: Event | None
    serving: int | None
    candidate: int | None
    servers: list[ServerStatus]

    @property
    def healthy(self) -> bool:
        """Whether every server answers as the champion should."""
        return (
            self.champion is not None
            and self.champion.version == self.serving
            and bool(self.servers)
            and all(server.canary and server.canary.passed for server in self.servers)
        )


class Lifecycle:
    """The versions of one served model, in its repository and on all its servers."""

    def __init__(self, repository: ModelRepository, servers: Sequence[Endpoint]) -> None:
        self._repository = repository
        self.servers = servers
        self._name = repository.name

    @property
    def name(self) -> str:
        """Of the model that clients ask for."""
        return self._name

    def deploy(self, release: Release, spec: ServeSpec) -> tuple[Version, list[Canary]]:
        """Stage a release as the candidate and hold it against its recorded answers.

        Returns it with the canary of each server. Raises ServingError where a server does not load
        it or it does not say what it should: nothing of it is left then.
        """
        self._discard()
        version = self._repository.stage(release, spec)
        name = self._repository.candidate.name
        try:
            found = self._load(name, version)
        except TerrafineError:
            self._discard()
            raise
        return version, found

    def promote(self) -> Event:
        """Make the candidate the champion.

        Where a server does not load it, or it does not answer there as recorded, every server goes
        back to the champion that was, and ServingError says why.
        """
        staged = self._repository.staged()
        candidate = self._repository.candidate.name
        # it may have lain there for days, and servers may have come since
        self._load(candidate, staged)
        version = self._repository.champions.write(staged.number, staged.files)
        # not three of them in a GPU's memory at once
        self._unload(candidate)
        try:
            event = self._enthrone("promote", version)
        except TerrafineError:
            self._repository.champions.remove(staged.number)
            raise
        self._repository.candidate.clear()
        return event

    def rollback(self) -> Event:
        """Make the champion before this one the champion again; ServingError as in promote."""
        stack = self._repository.history().champions
        if len(stack) < 2:
            raise ServingError(
                f"{self._repository.champions.storage}: there is no champion to go back to; "
                "deploy another release"
            )
        return self._enthrone("rollback", self._read(stack[-2]))

    def status(self) -> Status:
        """What is served; never raises because of a server."""
        stack = self._repository.history().champions
        version = self._served()
        candidate = self._repository.candidate.serving()
        return Status(
            name=self._name,
            repository=str(self._repository.storage),
            champion=stack[-1] if stack else None,
            before=stack[-2] if len(stack) > 1 else None,
            serving=version and version.number,
            candidate=candidate and newest(candidate),
            servers=[self._server_status(server, version) for server in self.servers],
        )

    def heal(self) -> list[str]:
        """Load the champion on every live server that does not answer.

        For what Triton does not do itself: a server that came back empty, a backend process that
        died. Returns the addresses that answer again; what cannot be healed, :meth:`status` shows.
        """
        version = self._served()
        if version is None:
            return []
        ill = [
            server
            for server in self.servers
            if server.live() and self._canary(server, self._name, version).verdict == "silent"
        ]
        if ill:
            self._repository.champions.touch()
        return [server.address for server in ill if self._revive(server, version)]

    def _revive(self, server: Endpoint, version: Version) -> bool:
        with contextlib.suppress(ServingError):
            server.load(self._name)
        return self._canary(server, self._name, version).passed

    def _enthrone(self, event: Literal["promote", "rollback"], version: Version) -> Event:
        """Serve a version, with those before it, or go back to what was served."""
        history = self._repository.history()
        try:
            self._serve(version, history)
        except TerrafineError:
            self._restore(history)
            raise
        done = Event(
            event=event,
            version=version.number,
            release=version.info.digest,
            model=version.info.model,
            at=datetime.now(UTC),
        )
        self._repository.record(history.model_copy(update={"events": (*history.events, done)}))
        return done

    def _serve(self, version: Version, history: History) -> None:
        keep = int(parameter(version.config, "loaded", where=f"version {version.number}")) - 1
        before = [one for one in history.champions if one.version < version.number]
        together = [version]
        for one in before[::-1][:keep]:
            # a damaged one serves nobody, and is no reason to keep the new one away
            with contextlib.suppress(ModelError):
                together.append(self._read(one))
        self._repository.champions.serve(together)
        self._load(self._name, version)

    def _restore(self, history: History) -> None:
        """What was served before is served again; it never was dropped where a load failed."""
        stack = history.champions
        with contextlib.suppress(TerrafineError):
            if stack:
                self._serve(self._read(stack[-1]), history)
            else:
                self._repository.champions.retire()
                self._unload(self._name)

    def _load(self, name: str, version: Version) -> list[Canary]:
        """Load on every server; ServingError at the first that does not answer as recorded."""
        found = []
        for server in self.servers:
            server.load(name)
            canary = self._canary(server, name, version)
            if not canary.passed:
                raise ServingError(
                    f"grpc://{server.address}: release {version.info.digest[:12]} failed its "
                    f"canary as {name} version {version.number}: {canary.reason}"
                )
            found.append(canary)
        return found

    def _unload(self, name: str) -> None:
        for server in self.servers:
            # a server that is away has nothing loaded when it comes back
            with contextlib.suppress(ServingError):
                server.unload(name)

    def _discard(self) -> None:
        self._unload(self._repository.candidate.name)
        self._repository.candidate.clear()

    def _canary(self, server: Endpoint, name: str, version: Version) -> Canary:
        """Ask a version about the windows of its release, one by one as they were recorded."""
        started = time.monotonic()
        try:
            found = [_bytes(server.ask(name, version.number, w)) for w in version.windows_NCHW]
        except BusyError as error:
            return Canary(verdict="busy", reason=str(error))
        except ServingError as error:
            return Canary(verdict="silent", reason=str(error))
        enhanced, code, other = _bytes(version.answers)
        pairs = [
            ((enhanced[i : i + 1], code[i : i + 1], other[i : i + 1]), said)
            for i, said in enumerate(found)
        ]
        report = compare(pairs, version.info.legend)
        exact = all(
            np.array_equal(wanted, got) for pair in pairs for wanted, got in zip(*pair, strict=True)
        )
        least, most = (
            float(parameter(version.config, f"canary_{key}", where=name))
            for key in ("class_agreement", "probability_error")
        )
        passed = exact or (report.class_agreement >= least and report.max_probability_error <= most)
        return Canary(
            verdict="passed" if passed else "differs",
            exact=exact,
            class_agreement=report.class_agreement,
            max_probability_error=report.max_probability_error,
            seconds=time.monotonic() - started,
            reason=""
            if passed
            else f"its classes agree with the recorded ones on {report.class_agreement:.6f} of "
            f"the pixels ({least} wanted), its probabilities within "
            f"{report.max_probability_error:.4f} ({most} wanted); look for another engine, "
            "precision or graph than at export, or lower serve.canary_class_agreement",
        )

    def _server_status(self, server: Endpoint, version: Version | None) -> ServerStatus:
        if not server.live():
            return ServerStatus(address=server.address, live=False)
        try:
            versions = server.versions(self._name)
        except ServingError:
            return ServerStatus(address=server.address, live=False)
        canary = version and self._canary(server, self._name, version)
        return ServerStatus(address=server.address, live=True, versions=versions, canary=canary)

    def _served(self) -> Version | None:
        """The version that servers are told to give to those who name none."""
        config = self._repository.champions.serving()
        return config and self._repository.champions.read(newest(config))

    def _read(self, event: Event) -> Version:
        version = self._repository.champions.read(event.version)
        if version.info.digest != event.release:
            raise ModelError(
                f"{self._repository.champions.storage}/{event.version}: holds release "
                f"{version.info.digest[:12]}, but {event.release[:12]} was promoted as this "
                "version; deploy the release again"
            )
        return version


def _bytes(said: Prediction) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    return said.enhanced_NHW, said.other_class_NHW, said.other_NHW
