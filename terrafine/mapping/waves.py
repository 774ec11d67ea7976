"""The driver's half of a run: receipts of written shards become readable in waves of commits."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import icechunk

from terrafine.errors import MapStoreError
from terrafine.mapping.reader import RunRecord
from terrafine.mapping.write import ShardAccount, ShardKey, ShardReceipt, Target

if TYPE_CHECKING:
    from terrafine.mapping.store import MapStore


@dataclass(frozen=True)
class MapAccount:
    """A complete run: pixels with a class, and pixels where no scene has data."""

    shards: int
    mapped: int
    explained: int


class MapRun:
    """A run that is being written: workers write whole shards, the driver commits in waves.

    ``done``: what was committed, ``unreadable``: scene -> why a worker could not read it.
    """

    def __init__(self, store: MapStore, record: RunRecord, planned: frozenset[ShardKey]) -> None:
        self._store, self.record, self.planned = store, record, planned
        self.done = store.accounts(record.run)
        self.unreadable = store.unreadable(record.run)
        self._told = set(self.unreadable)
        self._writer = uuid4().hex
        self._wave: dict[ShardKey, ShardReceipt] = {}
        session = store._repository.writable_session(record.run)
        self._tip = session.snapshot_id
        fork = pickle.dumps(session.fork())
        self.target = Target(str(store.path), fork, store.layout.zones)

    @property
    def name(self) -> str:
        """The run's branch."""
        return self.record.run

    @property
    def pending(self) -> int:
        """Shards accepted since the last commit."""
        return len(self._wave)

    def todo(self) -> list[ShardKey]:
        """Shards that are still to be computed, zone by zone and row by row."""
        return sorted(self.planned - self.done.keys() - self._wave.keys())

    def accept(self, receipt: ShardReceipt) -> bool:
        """Take a written shard into the current wave.

        A shard that is there already (workers may deliver twice) is dropped and False returned.
        MapStoreError for one that is not planned, whose pixels with data do not all have a class,
        or that came out otherwise before; a scene that the shard shows one of the times, and that
        could not be read by some worker, excuses the last.
        """
        (zone, window), account = receipt.key, receipt.account
        where = f"{self._store.path}, zone {zone}, shard at row {window.row}, column {window.col}"
        if receipt.key not in self.planned:
            raise MapStoreError(f"{where}: not planned; map with the spec that planned this run")
        before = self.done.get(receipt.key)
        if receipt.key in self._wave:
            before = self._wave[receipt.key].account
        self.unreadable |= receipt.unreadable
        if before is not None:
            differs = before.checksums != account.checksums
            if differs and not self._shows_unreadable(before, account):
                raise MapStoreError(
                    f"{where}: computed twice with different results; what was committed is kept; "
                    "the model or the imagery has changed during the run, or a machine errs"
                )
            return False
        if account.mapped + account.explained != window.height * window.width:
            raise MapStoreError(
                f"{where}: {account.mapped} pixels with a class and {account.explained} without "
                f"data do not make {window.height * window.width}; the model does not answer as it "
                "was exported; check it, then run the map again"
            )
        self._wave[receipt.key] = receipt
        return True

    def _shows_unreadable(self, *accounts: ShardAccount) -> bool:
        """Whether any has pixels of a scene that a worker could not read."""
        shown = {number for account in accounts for number in account.scenes}
        scenes = enumerate(self.record.scenes, start=1)
        return any(number in shown and scene in self.unreadable for number, scene in scenes)

    def commit(self) -> None:
        """Make the wave's shards readable on the run's branch, all at once."""
        if not self._wave:
            return
        session = self._store._repository.writable_session(self.name)
        if session.snapshot_id != self._tip:
            raise MapStoreError(
                f"{self._store.path}: another process has committed to {self.name} meanwhile; let "
                "one finish, then run again: finished shards are kept"
            )
        wave = sorted(self._wave.items())
        # from workers of this run, which unpickled all they are from this process
        session.merge(*(pickle.loads(receipt.changes) for _, receipt in wave))  # noqa: S301
        metadata = {
            "kind": "wave",
            "writer": self._writer,
            "shards": listed(self._wave),
            "accounts": [receipt.account.model_dump(mode="json") for _, receipt in wave],
            "unreadable": {
                scene: why for scene, why in self.unreadable.items() if scene not in self._told
            },
            **digests(self.record),
        }
        try:
            self._tip = session.commit(f"{len(wave)} shards", metadata=metadata)
        except icechunk.ConflictError:
            if not self._is_ours(tip := self._newest(), metadata):
                raise
            self._tip = tip.id
        self.done |= {key: receipt.account for key, receipt in wave}
        self._told, self._wave = set(self.unreadable), {}

    def _newest(self) -> icechunk.SnapshotInfo:
        return next(self._store._repository.ancestry(branch=self.name))

    def _is_ours(self, commit: icechunk.SnapshotInfo, metadata: Mapping[str, Any]) -> bool:
        """A bucket may do what was asked, and its answer be lost: tried again, a commit finds
        itself in its way."""
        return commit.parent_id == self._tip and dict(commit.metadata) == metadata

    def account(self) -> MapAccount:
        """What was mapped, once planned = written; MapStoreError when a shard is not there.

        Shards count by their receipts and by what the store holds.
        """
        left = self.todo()
        for zone in {zone for zone, _ in self.planned}:
            there = self._store.written(zone, self._tip)
            told = self.planned & self.done.keys()
            left += sorted((z, shard) for z, shard in told if z == zone and shard not in there)
        if left:
            zone, shard = left[0]
            raise MapStoreError(
                f"{self._store.path}: {len(left)} shards were not delivered, the first at row "
                f"{shard.row}, column {shard.col} of zone {zone}; run the map again, it resumes"
            )
        accounts = [self.done[key] for key in self.planned]
        return MapAccount(
            shards=len(accounts),
            mapped=sum(a.mapped for a in accounts),
            explained=sum(a.explained for a in accounts),
        )


def listed(shards: Iterable[ShardKey]) -> list[list[Any]]:
    """Shards as commit metadata and attributes hold them."""
    return sorted([zone, window.row, window.col] for zone, window in shards)


def digests(record: RunRecord) -> dict[str, str]:
    """What tells runs apart, as every commit of theirs says it."""
    return {"model": record.model, "spec": record.spec}
