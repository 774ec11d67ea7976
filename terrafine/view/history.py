"""What the commits of a map store tell: how far a run is, and what its overviews lack."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from terrafine.geometry import Window
from terrafine.mapping import Commit, MapReader

ShardKey = tuple[str, Window]

# The speed of a run is that of its last so many commits.
_RECENT = 20


@dataclass(frozen=True)
class Progress:
    """How far the run behind a state of the store was.

    ``done``, ``planned``: shards; ``latest``: those of the last wave; ``per_minute``: shards, None
    before the second wave.
    """

    planned: int
    done: int
    latest: tuple[ShardKey, ...]
    last_commit: datetime
    per_minute: float | None


class History:
    """The commits of one store, each read once however often a growing run is asked about."""

    def __init__(self, reader: MapReader) -> None:
        self._reader = reader
        self._commits: dict[str, tuple[Commit, str | None]] = {}
        self._lock = threading.Lock()

    def commits(self, snapshot: str) -> list[Commit]:
        """The commits that led to a snapshot, newest first."""
        with self._lock:
            if snapshot not in self._commits:
                self._learn(snapshot)
            return list(self._known(snapshot))

    def progress(self, snapshot: str) -> Progress:
        """How far the run behind a snapshot was."""
        commits = self.commits(snapshot)
        waves = [commit for commit in _own(commits) if commit.kind == "wave"]
        done = {shard for wave in waves for shard in wave.shards}
        return Progress(
            planned=len(self._reader.planned(snapshot)),
            done=len(done),
            latest=waves[0].shards if waves else (),
            last_commit=commits[0].written_at,
            per_minute=_per_minute(waves[:_RECENT]),
        )

    def since_overviews(self, snapshot: str, zone: str) -> set[Window] | None:
        """The shards of a zone that were written after its overviews; None where it has none."""
        later: set[Window] = set()
        for commit in self.commits(snapshot):
            if commit.kind == "overviews" and commit.zone == zone:
                return later
            later |= {shard for name, shard in commit.shards if name == zone}
        return None

    def _learn(self, snapshot: str) -> None:
        new: list[Commit] = []
        before: str | None = None
        for commit in self._reader.commits(snapshot):
            if commit.snapshot in self._commits:
                before = commit.snapshot
                break
            new.append(commit)
        for commit in reversed(new):
            self._commits[commit.snapshot] = commit, before
            before = commit.snapshot

    def _known(self, snapshot: str | None) -> Iterator[Commit]:
        while snapshot is not None:
            commit, snapshot = self._commits[snapshot]
            yield commit


def _own(commits: Sequence[Commit]) -> Iterator[Commit]:
    """The commits of the newest run, without those of the release that it started from."""
    for commit in commits:
        yield commit
        if commit.kind == "run":
            return


def _per_minute(waves: Sequence[Commit]) -> float | None:
    if len(waves) < 2:
        return None
    seconds = (waves[0].written_at - waves[-1].written_at).total_seconds()
    shards = sum(len(wave.shards) for wave in waves[:-1])
    return shards / seconds * 60 if seconds > 0 else None
