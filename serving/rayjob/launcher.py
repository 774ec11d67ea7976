"""Create a RayJob, or find it again, and follow it to its end.

The resource's status is what counts, not Ray's dashboard. Who waits may die at any moment: the
next one finds the same RayJob by its name. One that failed is replaced by whoever comes next.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import FrameType
from typing import Any, Protocol

from serving.rayjob.api import RayJobApi, Resource
from serving.rayjob.template import DIGEST, STAGE
from terrafine.errors import StageError

log = logging.getLogger(__name__)

_ENDED = {"Complete", "Failed", "ValidationFailed"}
# of the 30 that Kubernetes leaves a pod
_SECONDS_TO_WITHDRAW = 20.0
_SECONDS_TO_GO = 600.0


class Observer(Protocol):
    """Told how a RayJob fares."""

    def launched(self, stage: str, how: str) -> None:
        """It was created, found again ("attached") or created in place of a failed one."""

    def status(self, stage: str, status: str, seconds: float) -> None:
        """What it does now, so many seconds after its creation."""


@dataclass(frozen=True)
class RayJobResult:
    """A RayJob that succeeded; ``seconds``: from its creation to its end, queue and all."""

    name: str
    status: str
    seconds: float


@dataclass
class _Wait:
    """One launcher's view of its RayJob."""

    api: RayJobApi
    manifest: Mapping[str, Any]
    deadline: float
    log: Callable[[str], None]
    observer: Observer | None
    every: float
    shown: str = ""
    printed: str = ""
    last_lines: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def stage(self) -> str:
        return str(self.manifest["metadata"]["labels"][STAGE])

    def start(self) -> Resource:
        """The RayJob: a new one, or the one that an earlier launcher left."""
        until = time.monotonic() + _SECONDS_TO_GO
        how = "created"
        while time.monotonic() < until:
            made = self.api.create(self.manifest)
            if made is not None:
                self._launched(how)
                return made
            found = self.api.get(self.name)
            if found is not None and not self._is_going(found):
                self._adopt(found)
                self._launched("attached")
                return found
            how = "replaced"
            time.sleep(min(self.every, 1.0))
        raise StageError(
            f"RayJob {self.name} of namespace {self.api.namespace} is being deleted and does not "
            "go; look at its finalizers (`kubectl get rayjob -o yaml`)"
        )

    def follow(self, found: Resource) -> RayJobResult:
        """Wait for its end, and print what it prints; StageError where it is no success."""
        uid, created = found["metadata"]["uid"], found["metadata"]["creationTimestamp"]
        began = datetime.fromisoformat(created).timestamp()
        while True:
            now = self.api.get(self.name)
            if now is None or now["metadata"]["uid"] != uid:
                raise StageError(
                    f"RayJob {self.name} was deleted while it ran (`kubectl delete`, Kueue or a "
                    "clean-up); run the step again: what it finished is kept"
                )
            seconds = time.time() - began
            self._show(now, seconds)
            self._print_log()
            if _status(now)[0] in _ENDED:
                return self._result(now, seconds)
            if seconds > self.deadline:
                self.api.delete(now)
                raise StageError(
                    f"RayJob {self.name} was not done after {self.deadline:.0f} s ({self.shown}) "
                    "and is deleted; raise the annotation terrafine.io/deadline-seconds of its "
                    "template, or look at what its queue and its pods wait for"
                )
            time.sleep(self.every)

    def withdraw(self) -> None:
        """Delete the RayJob, if it is ours."""
        try:
            found = self.api.get(self.name, patience=_SECONDS_TO_WITHDRAW / 2)
            if found is not None and self._is_ours(found):
                self.api.delete(found, patience=_SECONDS_TO_WITHDRAW / 2)
        except StageError as error:
            self.log(f"RayJob {self.name} could not be deleted: {error}")
        else:
            self.log(f"RayJob {self.name} is deleted, as this process was told to stop")

    def _is_going(self, found: Resource) -> bool:
        """Whether it makes room for another; StageError where the name is another order's."""
        if not self._is_ours(found):
            raise StageError(
                f"RayJob {self.name} of namespace {self.api.namespace} is there already and is "
                f"another order (label {DIGEST}: {_labels(found).get(DIGEST)}, wanted: "
                f"{_labels(self.manifest)[DIGEST]}); delete it, or use another namespace"
            )
        if "deletionTimestamp" in found["metadata"]:
            return True
        if failure := _failure(found):
            self.log(f"RayJob {self.name} failed before ({failure}): once more")
            self.api.delete(found)
        return bool(failure)

    def _is_ours(self, found: Resource) -> bool:
        return bool(_labels(found).get(DIGEST) == _labels(self.manifest)[DIGEST])

    def _adopt(self, found: Resource) -> None:
        owners = self.manifest["metadata"].get("ownerReferences")
        if owners and owners != found["metadata"].get("ownerReferences"):
            try:
                self.api.adopt(found, owners)
            except StageError as error:
                self.log(f"RayJob {self.name} goes with the pod that launched it: {error}")

    def _launched(self, how: str) -> None:
        self.log(f"RayJob {self.name} in namespace {self.api.namespace}: {how}")
        if self.observer is not None:
            self.observer.launched(self.stage, how)

    def _show(self, found: Resource, seconds: float) -> None:
        deployment, job = _status(found)
        status = " ".join(part for part in (deployment, job) if part) or "New"
        if self.observer is not None:
            self.observer.status(self.stage, deployment or "New", seconds)
        if status != self.shown:
            self.shown = status
            waits = " (waits in its queue)" if deployment == "Suspended" else ""
            self.log(f"RayJob {self.name}: {status}{waits}")

    def _print_log(self) -> None:
        """Print the lines that are newer than the last one printed."""
        lines = [line.partition(" ") for line in self.api.log_lines(self.name)]
        for when, _, text in lines:
            if when > self.printed:
                self.printed = when
                self.last_lines = [*self.last_lines[-49:], text]
                self.log(text)

    def _result(self, found: Resource, seconds: float) -> RayJobResult:
        why = _failure(found)
        if not why:
            return RayJobResult(self.name, "SUCCEEDED", round(seconds, 1))
        said = _sentence([*str(found["status"].get("message", "")).splitlines(), *self.last_lines])
        raise StageError(f"RayJob {self.name} did not succeed: {why}{said and f': {said}'}")


def run_rayjob(
    api: RayJobApi,
    manifest: Mapping[str, Any],
    *,
    deadline: float,
    log: Callable[[str], None] = log.info,
    observer: Observer | None = None,
    every: float = 5.0,
) -> RayJobResult:
    """Create a RayJob, or find it again, and wait until it has succeeded.

    ``manifest``: name and label ``terrafine.io/digest`` say what is the same order; ``deadline``:
    seconds since its creation after which it is deleted; ``log``: takes its states and the lines
    its driver prints; ``every``: seconds between looks.

    Raises StageError with the RayJob's own reason where it failed, was stopped, refused by KubeRay,
    deleted, too late, or where its name is taken; where the API server stays away the RayJob goes
    on. SIGTERM and Ctrl-C delete it.
    """
    wait = _Wait(api, manifest, deadline, log, observer, every)
    with _withdrawn_on_signal(wait):
        return wait.follow(wait.start())


@contextmanager
def _withdrawn_on_signal(wait: _Wait) -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _leave) if main else None
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if main:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wait.withdraw()
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _labels(found: Resource) -> Mapping[str, str]:
    return found["metadata"].get("labels") or {}


def _status(found: Resource) -> tuple[str, str]:
    """Of the RayJob, and of the Ray job in it."""
    status = found.get("status") or {}
    return status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")


def _failure(found: Resource) -> str:
    """Why a RayJob that ended is no success; empty for one that is, or goes on."""
    deployment, job = _status(found)
    if deployment not in _ENDED or (deployment, job) == ("Complete", "SUCCEEDED"):
        return ""
    if job == "STOPPED":
        return "its Ray job was stopped by somebody"
    return " ".join(p for p in (deployment, job, found["status"].get("reason", "")) if p)


def _sentence(lines: list[str]) -> str:
    """The command line's own sentence where it said one, else the last line."""
    said = [line.strip() for line in lines if line.strip()]
    own = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (own or said or [""])[-1]
