"""From a release to the champion that clients get, and back: stage, canary, promote, roll back.

The repository is the truth and servers follow it: what ``config.pbtxt`` names is loaded at every
start of a server. A version is first served under ``<name>-candidate``, where no client looks, and
has to give the answers recorded at export; only then does ``<name>`` load it. Triton loads the new
version before it drops an old one, so that clients notice nothing but the version in the answer.

A change is written into the history before it is made. One that fails is undone on every server
that can be reached; one that was killed is undone by the next who changes or heals the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from pydantic import BaseModel

from serving.triton.canary import Canary, ask_champion, ask_version, full_batch
from serving.triton.config import build_config, from_text, newest, parameter, to_text
from serving.triton.endpoint import Endpoint
from serving.triton.lock import LockedError
from serving.triton.repository import Event, History, ModelRepository, Version
from terrafine.errors import ModelError, ServingError, TerrafineError
from terrafine.export import Release
from terrafine.spec import ServeSpec

# verdicts that a load may turn into "passed"
_TO_HEAL = ("silent", "other")


class ServerStatus(BaseModel):
    """One server: whether it is live, its versions of the model, and the champion's canary.

    ``healed``: it did not answer as the champion should, until the champion was loaded anew.
    """

    address: str
    live: bool
    versions: dict[int, str] = {}
    canary: Canary | None = None
    healed: bool = False


class Status(BaseModel):
    """What is served under a name, and what each server makes of it.

    ``champion``, ``before``: by the history; ``begun``: a change that has not ended; ``serving``:
    the version that servers are told to give to those who name none.
    """

    name: str
    repository: str
    champion: Event | None
    before: Event | None
    begun: Event | None
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

    @property
    def healed(self) -> list[str]:
        """Addresses of the servers that answer again."""
        return [server.address for server in self.servers if server.healed]


class RolledBack(Event):
    """The champion again; ``away``: the servers without it, which load it when they start."""

    away: tuple[str, ...] = ()


class Lifecycle:
    """The versions of one served model, in its repository and on all its servers.

    What changes them raises LockedError while somebody else does.
    """

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

        Returns it with the canary of each server. Raises ServingError where a server is away, does
        not load it, or it does not say what it should: nothing of it is left then.
        """
        with self._repository.locked("deploy"):
            self._undo_begun()
            self._require_all_live()
            self._discard()
            version = self._repository.stage(release, spec)
            name = self._repository.candidate.name
            try:
                found = self._load(name, version, self.servers)
            except TerrafineError:
                self._discard()
                raise
        return version, found

    def promote(self, release: str | None = None) -> Event:
        """Make the candidate the champion; ServingError where it is not ``release`` (a digest).

        Where a server is away, nothing is changed; where one does not load it, or it does not
        answer there as recorded, every server goes back to the champion that was. ServingError
        says why.
        """
        with self._repository.locked("promote") as require:
            self._undo_begun()
            staged = self._repository.staged()
            if release is not None and staged.info.digest != release:
                raise ServingError(
                    f"{self._repository.candidate.storage}: the candidate is release "
                    f"{staged.info.digest[:12]} (version {staged.number}), not {release[:12]}; "
                    "somebody has deployed it since: deploy yours again, or promote that one"
                )
            candidate = self._repository.candidate.name
            self._require_all_live()
            # it may have lain there for days, and servers may have come since
            self._load(candidate, staged, self.servers)
            with self._undone_if_it_fails("promote", staged) as history:
                version = self._repository.champions.write(staged.number, staged.files)
                # not three of them in a GPU's memory at once
                self._unload(candidate)
                require()
                self._serve(version, history, self.servers)
                require()
                event = self._repository.end(history)
            self._repository.candidate.clear()
        return event

    def rollback(self) -> RolledBack:
        """Make the champion before this one the champion again; ServingError as in promote.

        Servers that are away keep no other from it: they load what the repository says when they
        start. After a promotion that was killed this is the champion that it was to follow.
        """
        with self._repository.locked("rollback") as require:
            undone = self._undo_begun()
            live, away = self._live()
            if not live:
                raise ServingError(
                    f"grpc://{','.join(away)}: no server answers; start one, or name one that "
                    "does (--url)"
                )
            stack = self._repository.history().champions
            if undone is not None and undone.event == "promote" and stack:
                self._load(self._name, self._read(stack[-1]), live)
                return RolledBack(**stack[-1].model_dump(), away=away)
            if len(stack) < 2:
                raise ServingError(
                    f"{self._repository.champions.storage}: there is no champion to go back to; "
                    "deploy another release"
                )
            version = self._read(stack[-2])
            with self._undone_if_it_fails("rollback", version) as history:
                self._serve(version, history, live)
                require()
                event = self._repository.end(history)
        return RolledBack(**event.model_dump(), away=away)

    def serves(self, release: Release, spec: ServeSpec) -> bool:
        """Whether every server answers as this release should, served as ``spec`` has it."""
        found = self.status()
        if not found.healthy or found.champion is None or found.champion.release != release.digest:
            return False
        number = found.champion.version
        wanted = to_text(build_config(release, spec, version=number))
        return bool(from_text(wanted, where="") == self._repository.read(number).config)

    def status(self) -> Status:
        """What is served; never raises because of a server."""
        history = self._repository.history()
        stack = history.champions
        version = self._repository.served()
        candidate = self._repository.candidate.serving()
        return Status(
            name=self._name,
            repository=str(self._repository.storage),
            champion=stack[-1] if stack else None,
            before=stack[-2] if len(stack) > 1 else None,
            begun=history.begun,
            serving=version and version.number,
            candidate=candidate and newest(candidate),
            servers=[self._server_status(server, version) for server in self.servers],
        )

    def heal(self) -> Status:
        """Load the champion on every live server that does not answer, or has another one.

        For what Triton does not do itself: a server that came back empty, a backend process that
        died or hangs, a change that was killed half-way. Returns what is served then, for which a
        server that is well is asked once. While somebody changes the champion, nothing is done.
        """
        self._settle()
        found = self.status()
        ill = {
            server.address
            for server in found.servers
            if server.canary and server.canary.verdict in _TO_HEAL
        }
        if not ill or found.begun is not None or found.serving is None:
            return found
        # what is loaded now is to be as it was released
        version = self._repository.read(found.serving)
        self._repository.champions.touch()
        asked = [
            self._revive(server, version) if server.address in ill else before
            for server, before in zip(self.servers, found.servers, strict=True)
        ]
        return found.model_copy(update={"servers": asked})

    def _revive(self, server: Endpoint, version: Version) -> ServerStatus:
        with contextlib.suppress(ServingError):
            server.load(self._name)
        found = self._server_status(server, version)
        healed = found.canary is not None and found.canary.passed
        return found.model_copy(update={"healed": healed})

    def _settle(self) -> None:
        """Undo what one who was killed began; who is at work is left alone."""
        if self._repository.history().begun is None:
            return
        with contextlib.suppress(LockedError), self._repository.locked("heal"):
            self._undo_begun()

    def _live(self) -> tuple[list[Endpoint], list[str]]:
        """The servers that answer at all, and the addresses of the others."""
        live = [server for server in self.servers if server.live()]
        return live, [server.address for server in self.servers if server not in live]

    def _require_all_live(self) -> None:
        """ServingError where a server is away."""
        live, away = self._live()
        if away:
            others = ",".join(server.address for server in live)
            raise ServingError(
                f"grpc://{','.join(away)}: does not answer; start it, or name only servers that do "
                f"(--url grpc://{others or 'HOST:PORT'}, or serve.server of the spec): it loads "
                "the champion when it starts"
            )

    def _undo_begun(self) -> Event | None:
        """What one who was killed began, once it is undone."""
        history = self._repository.history()
        if history.begun is not None:
            self._undo(history)
        return history.begun

    @contextmanager
    def _undone_if_it_fails(
        self, event: Literal["promote", "rollback"], version: Version
    ) -> Iterator[History]:
        history = self._repository.begin(event, version)
        try:
            yield history
        except LockedError:
            # who is at work now has undone it
            raise
        except TerrafineError:
            # what cannot be undone now stays begun, and is undone by the next who looks
            with contextlib.suppress(TerrafineError):
                self._undo(history)
            raise

    def _undo(self, history: History) -> None:
        """Serve again what was served before the change that ``history`` says was begun."""
        begun = history.begun
        assert begun is not None
        champions = self._repository.champions
        config = champions.serving()
        if config is not None and newest(config) == begun.version:
            self._restore(history)
        if begun.event == "promote" and not champions.names(begun.version):
            champions.remove(begun.version)
        self._repository.record(history.model_copy(update={"begun": None}), after=history)

    def _restore(self, history: History) -> None:
        """The champion by the history is loaded on every server that can be reached."""
        if not history.champions:
            self._repository.champions.retire()
            self._unload(self._name)
            return
        try:
            champion = self._read(history.champions[-1])
        except ModelError:
            # nobody could load it: what has been begun is better than nothing
            return
        self._repository.champions.serve(self._together(champion, history))
        for server in self.servers:
            with contextlib.suppress(ServingError):
                server.load(self._name)

    def _serve(self, version: Version, history: History, servers: Sequence[Endpoint]) -> None:
        """Load a version on servers, with those before it; all have to say as recorded."""
        together = self._together(version, history)
        self._repository.champions.serve(together)
        self._load(self._name, version, servers)
        for server in servers:
            for other in together[1:]:
                canary = ask_version(server, self._name, other, batch=full_batch(version))
                if canary.verdict == "differs":
                    raise ServingError(
                        f"grpc://{server.address}: version {other.number} of {self._name}, which "
                        f"stays loaded for maps that began with it, failed its canary beside "
                        f"version {version.number}: {canary.reason}; or deploy with serve.loaded: 1"
                    )

    def _together(self, version: Version, history: History) -> list[Version]:
        """A version, and as many of the champions before it as it wants to have beside it."""
        keep = int(parameter(version.config, "loaded", where=f"version {version.number}")) - 1
        before = [one for one in history.champions if one.version < version.number]
        together = [version]
        for one in before[::-1][:keep]:
            # a damaged one serves nobody, and is no reason to keep the new one away
            with contextlib.suppress(ModelError):
                together.append(self._read(one))
        return together

    def _load(self, name: str, version: Version, servers: Sequence[Endpoint]) -> list[Canary]:
        """Load on servers; ServingError at the first that does not answer as recorded."""
        found = []
        for server in servers:
            server.load(name)
            canary = ask_version(server, name, version, batch=full_batch(version))
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

    def _server_status(self, server: Endpoint, version: Version | None) -> ServerStatus:
        if not server.live():
            return ServerStatus(address=server.address, live=False)
        canary = version and ask_champion(server, self._name, version)
        try:
            versions = server.versions(self._name)
        except ServingError:
            versions = {}
        return ServerStatus(address=server.address, live=True, versions=versions, canary=canary)

    def _read(self, event: Event) -> Version:
        version = self._repository.read(event.version)
        if version.info.digest != event.release:
            raise ModelError(
                f"{self._repository.champions.storage}/{event.version}: holds release "
                f"{version.info.digest[:12]}, but {event.release[:12]} was promoted as this "
                "version; deploy the release again"
            )
        return version
