"""Writing a map store: a map is a transaction (Icechunk on disk).

The store's first commit holds the empty layout. A run is a branch from there; its shards become
readable in waves, each one commit whose metadata lists them, so that a killed run knows what it
has. A release is a tag on a complete run, and the branch ``main`` stands on the current release:
whoever reads the store without naming a run never sees a map that is half-done.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import icechunk
import zarr

from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.legend import Legend
from terrafine.mapping.layout import Layout, open_overview, read_json, write_json, write_layout
from terrafine.mapping.place import (
    MAIN,
    Place,
    is_map_store,
    settings,
    storage,
    storage_errors,
)
from terrafine.mapping.plan import Plan
from terrafine.mapping.reader import UNKNOWN, MapReader, Origin, RunRecord
from terrafine.mapping.waves import MapRun, digests, listed
from terrafine.mapping.write import ShardAccount, ShardKey

_RELEASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class MapStore(MapReader):
    """A map store, open for reading and writing."""

    @classmethod
    def create(cls, path: Place, plans: Iterable[Plan], legend: Legend) -> MapStore:
        """Make an empty store; MapStoreError when something else is there, OSError from the disk.

        In a folder it is made beside ``path`` and renamed, so a store that exists is whole.
        """
        plans = tuple(plans)
        if isinstance(path, str):
            with storage_errors(path, "made"):
                _lay_out(storage(path), plans, legend)
            return cls(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise MapStoreError(f"{path}: already exists and is not empty; name another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with storage_errors(path, "made"):
                _lay_out(storage(partial), plans, legend)
            partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(path)

    @classmethod
    def open_for(cls, path: Place, plans: Iterable[Plan], legend: Legend) -> MapStore:
        """The store at ``path``, made if it is not there.

        MapStoreError when it has another legend, or another zone, grid or shard size where there
        are shards to be mapped, or when these lie beyond it.
        """
        plans = tuple(plans)
        if not is_map_store(path) or _is_bare(path):
            return cls.create(path, plans, legend)
        store = cls(path)
        different = store.layout.difference(plans, legend)
        if different:
            raise MapStoreError(
                f"{path}: this map store was made for {different}; map into a new folder, or "
                "delete this one if it is no longer needed"
            )
        return store

    def run_name(self, *, model: str, spec: str, base: str | None = None) -> str:
        """Branch of the run with this model, spec and base: equal ones resume each other."""
        parts = [model, spec, *([base] if base else [])]
        return "run-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    @contextmanager
    def run(
        self,
        plans: Iterable[Plan],
        *,
        model: str,
        spec: str,
        scenes: Iterable[str],
        mapping: Mapping[str, Any],
        base: str | None = None,
        origin: Origin = UNKNOWN,
        stale: Iterable[ShardKey] = (),
    ) -> Iterator[MapRun]:
        """Start or resume a run, alone: MapStoreError while another process writes to the store.

        Parameters: ``model`` and ``spec`` digests of all that the pixels depend on besides the
        grid (weights; imagery, mapping sections, data files); ``scenes`` names in the order that
        the array ``source`` counts them; ``mapping`` and ``origin``, to be kept for who brings the
        map up to date. With the release ``base`` the run starts from its map and shares the shards
        not planned, ``stale`` ones among them, which its scenes would change.
        """
        name = self.run_name(model=model, spec=spec, base=base)
        record = RunRecord(
            name, model, spec, tuple(scenes), dict(mapping), base, dict(origin.settings)
        )
        planned = frozenset((p.zone, s) for p in plans for s in p.shards())
        with _alone(self.path), storage_errors(self.path, "written"):
            self._start(record, {
                "planned": listed(planned), "stale": listed(stale), "stamps": dict(origin.stamps)
            })  # fmt: skip
            yield MapRun(self, record, planned)

    def _start(self, record: RunRecord, lists: Mapping[str, Any]) -> None:
        """Make the run's branch, with its record and what would be too long for the attributes."""
        repository = self._repository
        if record.run not in repository.list_branches():
            start = repository.lookup_tag(record.base) if record.base else self._base()
            repository.create_branch(record.run, start)
        session = repository.writable_session(record.run)
        root = zarr.open_group(session.store, mode="r+")
        stored: Any = root.attrs.get("run", {})
        if stored.get("run") != record.run:
            told = asdict(record)
            for name, value in {"scenes": told.pop("scenes"), **lists}.items():
                write_json(root, name, value)
            root.update_attributes({"run": told})
            session.commit(f"start {record.run}", metadata={"kind": "run", **digests(record)})

    def _base(self) -> str:
        """The snapshot that holds the empty layout, from which every run starts."""
        return next(i.id for i in self._ancestry(MAIN) if i.metadata.get("kind") == "layout")

    def done(self, run: str) -> set[ShardKey]:
        """The shards that a run has committed."""
        with storage_errors(self.path, "read"):
            shards = [s for i in self._own(run) for s in i.metadata.get("shards", [])]
        return {self._key(shard) for shard in shards}

    def accounts(self, run: str) -> dict[ShardKey, ShardAccount]:
        """What each shard that a run has committed holds."""
        with storage_errors(self.path, "read"):
            waves = [i.metadata for i in self._own(run) if i.metadata.get("accounts")]
        return {
            self._key(shard): ShardAccount.model_validate(account)
            for wave in waves
            for shard, account in zip(wave["shards"], wave["accounts"], strict=True)
        }

    def unreadable(self, run: str) -> dict[str, str]:
        """Scene -> why it could not be read in a run."""
        with storage_errors(self.path, "read"):
            found = [i.metadata.get("unreadable", {}) for i in self._own(run)]
        return {scene: why for wave in found for scene, why in wave.items()}

    def missing(self, run: str) -> set[ShardKey]:
        """The shards that a run has planned and not committed."""
        with storage_errors(self.path, "read"):
            planned = read_json(self._root(self.snapshot(run)), "planned")
        if planned is None:
            raise MapStoreError(f"{self.path}: {run} is no run; runs: {', '.join(self.runs())}")
        return {self._key(shard) for shard in planned} - self.done(run)

    def release(self, name: str, run: str) -> None:
        """Tag a complete run as ``name`` and make it the current release; MapStoreError otherwise.

        Doing it again changes nothing. A name stays with its map for ever.
        """
        if not _RELEASE_NAME.fullmatch(name) or name == MAIN or name.startswith("run-"):
            raise MapStoreError(
                f"{name!r} cannot name a release; use letters, digits, '.', '_' and '-'"
            )
        missing = self.missing(run)
        if missing:
            zone, shard = min(missing)
            raise MapStoreError(
                f"{self.path}: run {run} lacks {len(missing)} shards, the first at row "
                f"{shard.row}, column {shard.col} of zone {zone}; run the map again, it resumes"
            )
        tip = self.snapshot(run)
        with _alone(self.path), storage_errors(self.path, "written"):
            if name not in self._repository.list_tags():
                self._repository.create_tag(name, tip)
            elif self._repository.lookup_tag(name) != tip:
                raise MapStoreError(
                    f"{self.path}: release {name!r} is another map already; choose another name"
                )
            self._repository.reset_branch(MAIN, tip)

    def rollback(self, name: str) -> None:
        """Make an earlier (or later) release the current one."""
        known = [release.name for release in self.releases()]
        if name not in known:
            raise MapStoreError(
                f"{self.path}: no release {name!r}; releases: {', '.join(known) or 'none yet'}"
            )
        with _alone(self.path), storage_errors(self.path, "written"):
            self._repository.reset_branch(MAIN, self._repository.lookup_tag(name))

    def without_overviews(self, run: str, zone: str, factors: Sequence[int]) -> set[Window]:
        """The written shards of a zone that its overviews by these factors do not show yet."""
        tip = self.snapshot(run)
        with storage_errors(self.path, "read"):
            made = next(
                (
                    info
                    for info in self._ancestry(tip)
                    if info.metadata.get("kind") == "overviews" and info.metadata["zone"] == zone
                ),
                None,
            )
            if made is None or set(factors) - set(made.metadata["factors"]):
                return self.written(zone, tip)
            if made.id == tip:
                return set()
            since = self._repository.diff(from_snapshot_id=made.id, to_snapshot_id=tip)
            places = since.updated_chunks.get(f"/{zone}/landcover", ())
        return {self._zone(zone).shard_at(*place) for place in places}

    @contextmanager
    def overviews_of(
        self, run: str, zone: str, factors: Sequence[int]
    ) -> Iterator[dict[int, zarr.Array[Any]]]:
        """Coarser class maps of a zone, open for writing (by threads, whole chunks each).

        They are committed at the end of the block, or forgotten after an error.
        """
        layout = self._zone(zone)
        with _alone(self.path), storage_errors(self.path, "written"):
            session = self._repository.writable_session(run)
            group = zarr.open_group(session.store, path=zone, mode="r+")
            yield {factor: open_overview(group, layout, factor) for factor in factors}
            if session.has_uncommitted_changes:
                session.commit(
                    f"overviews of {zone}",
                    metadata={"kind": "overviews", "zone": zone, "factors": list(factors)},
                )

    def _own(self, run: str) -> Iterator[icechunk.SnapshotInfo]:
        """A run's commits, newest first, without those of the release that it started from."""
        for info in self._ancestry(run):
            yield info
            if info.metadata.get("kind") == "run":
                return

    def collect(self) -> int:
        """Remove what belongs to no map: chunks of workers that died, of receipts that were
        dropped. Bytes that were freed.

        MapStoreError while a run is under way. In a bucket, where that is not known, what is
        younger than two days is left, which no run may keep uncommitted.
        """
        age = timedelta(days=2 if isinstance(self.path, str) else 0)
        with _alone(self.path), storage_errors(self.path, "written"):
            return int(self._repository.garbage_collect(datetime.now(UTC) - age).bytes_deleted)


def _lay_out(place: icechunk.Storage, plans: Iterable[Plan], legend: Legend) -> None:
    repository = icechunk.Repository.open_or_create(place, config=settings())
    session = repository.writable_session(MAIN)
    write_layout(session.store, Layout.of(plans, legend))
    session.commit("layout", metadata={"kind": "layout"})


def _is_bare(path: Place) -> bool:
    """Whether a process died, or lost its bucket, before it had made the store that it began."""
    if isinstance(path, Path):  # which is renamed when it is whole
        return False
    with storage_errors(path, "opened"):
        repository = icechunk.Repository.open(storage(path), config=settings())
        return len(list(islice(repository.ancestry(branch=MAIN), 2))) == 1


@contextmanager
def _alone(path: Place) -> Iterator[None]:
    """Hold the store for one writer; the kernel lets go when the process dies, however it dies.

    A bucket has no locks: there a run that finds a commit of another's on its branch ends.
    """
    if isinstance(path, str):
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MapStoreError(
                f"{path}: another process is writing to this map store; wait for it to finish"
            ) from error
        yield
    finally:
        os.close(descriptor)
