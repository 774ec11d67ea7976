"""How a map store stands, and whether a map is what its model says of its scenes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from terrafine.mapping.layout import FILLS
from terrafine.mapping.shard import ShardResult
from terrafine.mapping.store import MapStore
from terrafine.mapping.write import ShardKey, checksum


@dataclass(frozen=True)
class RunState:
    """A run, finished or not. ``mapped``, ``explained``: pixels with a class and without data, of
    the shards that are done; ``unreadable``: scene -> why; ``stale``: shards that an update's
    region left as they were; ``releases``: names of this map."""

    run: str
    model: str
    spec: str
    planned: int
    done: int
    mapped: int
    explained: int
    last_commit: datetime
    unreadable: dict[str, str]
    stale: int
    releases: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """A shard that was looked at again.

    ``differs``: arrays whose stored bytes are not what the model says now; ``damaged``: those whose
    stored bytes are not what was written.
    """

    zone: str
    row: int
    col: int
    differs: tuple[str, ...]
    damaged: tuple[str, ...]


def run_states(store: MapStore) -> list[RunState]:
    """Every run of a store, the one that was committed to last at the end."""
    releases = store.releases()
    found = []
    for run in store.runs():
        record = store.provenance(run)
        if record is None:
            continue
        accounts = store.accounts(run)
        found.append(
            RunState(
                run=run,
                model=record.model,
                spec=record.spec,
                planned=len(store.missing(run)) + len(accounts),
                done=len(accounts),
                mapped=sum(account.mapped for account in accounts.values()),
                explained=sum(account.explained for account in accounts.values()),
                last_commit=store.written_at(run),
                unreadable=store.unreadable(run),
                stale=len(store.stale(run)),
                releases=tuple(r.name for r in releases if r.record.run == run),
            )
        )
    return sorted(found, key=lambda state: state.last_commit)


def verify_sample(
    store: MapStore,
    run: str,
    compute: Callable[[ShardKey], ShardResult],
    *,
    shards: int,
    seed: int,
) -> Iterator[Verified]:
    """Compute a random sample of a run's shards again and compare bytes."""
    accounts = store.accounts(run)
    chosen = random.Random(seed).sample(sorted(accounts), min(shards, len(accounts)))
    for zone, window in chosen:
        again = compute((zone, window))
        differs, damaged = [], []
        for name in FILLS:
            stored = checksum(store.read(zone, window, name, ref=run))
            if stored != accounts[zone, window].checksums[name]:
                damaged.append(name)
            if stored != checksum(getattr(again, name)):
                differs.append(name)
        yield Verified(zone, window.row, window.col, tuple(differs), tuple(damaged))
