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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import icechunk
import numpy as np
import zarr

from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.legend import Legend, UInt8Array
from terrafine.mapping.layout import FILLS, Layout, write_layout, write_overview
from terrafine.mapping.plan import Plan, require_shard
from terrafine.mapping.reader import (
    MAIN,
    MapReader,
    RunRecord,
    is_map_store,
    storage,
    storage_errors,
)
from terrafine.mapping.shard import ShardResult

ShardKey = tuple[str, Window]

_RELEASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class MapStore(MapReader):
    """A map store, open for reading and writing."""

    @classmethod
    def create(cls, path: Path, plans: Iterable[Plan], legend: Legend) -> MapStore:
        """Make an empty store; MapStoreError when something else is there, OSError from the disk.

        It is made beside ``path`` and renamed, so a store that exists is whole.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise MapStoreError(f"{path}: already exists and is not empty; name another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with storage_errors(path, "made"):
                repository = icechunk.Repository.create(storage(partial))
                session = repository.writable_session(MAIN)
                write_layout(session.store, Layout.of(plans, legend))
                session.commit("layout", metadata={"kind": "layout"})
            partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(path)

    @classmethod
    def open_for(cls, path: Path, plans: Iterable[Plan], legend: Legend) -> MapStore:
        """The store at ``path``, made if it is not there.

        MapStoreError when it has another legend, zone, grid, extent or shard size.
        """
        plans = tuple(plans)
        if not is_map_store(path):
            return cls.create(path, plans, legend)
        store = cls(path)
        different = store.layout.difference(Layout.of(plans, legend))
        if different:
            raise MapStoreError(
                f"{path}: this map store was made for {different}; map into a new folder, or "
                "delete this one if it is no longer needed"
            )
        return store

    def run_name(self, *, model: str, spec: str) -> str:
        """Branch of the run with this model and spec: equal ones resume each other."""
        return "run-" + hashlib.sha256(f"{model}\n{spec}".encode()).hexdigest()[:12]

    @contextmanager
    def run(
        self,
        plans: Iterable[Plan],
        *,
        model: str,
        spec: str,
        scenes: Iterable[str],
        mapping: Mapping[str, Any],
    ) -> Iterator[MapRun]:
        """Start or resume a run, alone: MapStoreError while another process writes to the store.

        Parameters: ``model`` and ``spec`` digests of all that the pixels depend on besides the
        grid (weights; imagery, mapping sections, data files); ``scenes`` names in the order that
        the array ``source`` counts them; ``mapping`` the window, halo and enhancement, to be kept.
        """
        record = RunRecord(
            self.run_name(model=model, spec=spec), model, spec, tuple(scenes), dict(mapping)
        )
        planned = frozenset((p.zone, s) for p in plans for s in p.shards())
        with _alone(self.path), storage_errors(self.path, "written"):
            self._start(record, planned)
            with MapRun(self, record, planned) as run:
                yield run

    def _start(self, record: RunRecord, planned: frozenset[ShardKey]) -> None:
        repository = self._repository
        if record.run not in repository.list_branches():
            repository.create_branch(record.run, self._base())
        session = repository.writable_session(record.run)
        root = zarr.open_group(session.store, mode="r+")
        if "run" not in root.attrs:
            root.update_attributes({"run": asdict(record), "planned": _listed(planned)})
            session.commit(f"start {record.run}", metadata={"kind": "run", **_digests(record)})

    def _base(self) -> str:
        """The snapshot that holds the empty layout, from which every run starts."""
        return next(i.id for i in self._ancestry(MAIN) if i.metadata.get("kind") == "layout")

    def done(self, run: str) -> set[ShardKey]:
        """The shards that a run has committed."""
        with storage_errors(self.path, "read"):
            listed = [s for i in self._ancestry(run) for s in i.metadata.get("shards", [])]
        return {self._key(shard) for shard in listed}

    def missing(self, run: str) -> set[ShardKey]:
        """The shards that a run has planned and not committed."""
        with storage_errors(self.path, "read"):
            planned: Any = self._root(self.snapshot(run)).attrs.get("planned")
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

    def write_overviews(self, run: str, zone: str, overviews: Mapping[int, UInt8Array]) -> None:
        """Store coarser class maps of a zone: factor -> codes over the zone's whole extent."""
        layout = self._zone(zone)
        with _alone(self.path), storage_errors(self.path, "written"):
            session = self._repository.writable_session(run)
            group = zarr.open_group(session.store, path=zone, mode="r+")
            for factor, codes_HW in overviews.items():
                write_overview(group, layout, codes_HW, factor)
            if session.has_uncommitted_changes:
                session.commit(
                    f"overviews of {zone}",
                    metadata={"kind": "overviews", "zone": zone, "factors": sorted(overviews)},
                )

    def _key(self, listed: list[Any]) -> ShardKey:
        zone, row, col = listed
        size = self._zone(zone).shard
        return zone, Window(row, col, size, size)


class MapRun:
    """A run that is being written: whole shards, committed in waves."""

    def __init__(self, store: MapStore, record: RunRecord, planned: frozenset[ShardKey]) -> None:
        self._store, self.record, self.planned = store, record, planned
        self.done = store.done(record.run)
        self._wave: set[ShardKey] = set()
        self._session: icechunk.Session | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Forget what was not committed: its chunks stay unreadable."""
        self._session = None

    @property
    def name(self) -> str:
        """The run's branch."""
        return self.record.run

    @property
    def pending(self) -> int:
        """Shards written since the last commit."""
        return len(self._wave)

    def todo(self, zone: str) -> list[Window]:
        """Shards of a zone that are still to be computed, row by row."""
        return sorted(s for z, s in self.planned - self.done - self._wave if z == zone)

    def write_shard(self, zone: str, result: ShardResult) -> bool:
        """Write one whole shard into the current wave.

        A shard that is there already (workers may deliver twice) is left alone and False returned.
        MapStoreError, before anything is written, for anything but a whole shard of the zone.
        """
        layout = self._store.layout.zones[zone]
        where = f"{self._store.path}, zone {zone}"
        require_shard(result.window, extent=layout.extent, shard=layout.shard, where=where)
        arrays: dict[str, Any] = {name: getattr(result, name) for name in FILLS}
        for name, array_HW in arrays.items():
            dtype, _ = FILLS[name]
            if array_HW.shape != result.window.shape or array_HW.dtype != np.dtype(dtype):
                raise MapStoreError(
                    f"{where}: {name} of the shard at row {result.window.row}, column "
                    f"{result.window.col} is {array_HW.dtype} {array_HW.shape}, not {dtype} "
                    f"{result.window.shape}; nothing was written"
                )
        if (zone, result.window) in self.done | self._wave:
            return False
        if self._session is None:
            self._session = self._store._repository.writable_session(self.name)
        group = zarr.open_group(self._session.store, path=zone, mode="r+")
        for name, array_HW in arrays.items():
            array = group[name]
            assert isinstance(array, zarr.Array)
            array[result.window.slices(layout.extent)] = array_HW
        self._wave.add((zone, result.window))
        return True

    def commit(self) -> None:
        """Make the wave's shards readable on the run's branch, all at once."""
        if self._session is None:
            return
        shards = _listed(self._wave)
        self._session.commit(
            f"{len(shards)} shards",
            metadata={"kind": "wave", "shards": shards, **_digests(self.record)},
        )
        self.done |= self._wave
        self._wave, self._session = set(), None


def _listed(shards: Iterable[ShardKey]) -> list[list[Any]]:
    """Shards as commit metadata and attributes hold them."""
    return sorted([zone, window.row, window.col] for zone, window in shards)


def _digests(record: RunRecord) -> dict[str, str]:
    return {"model": record.model, "spec": record.spec}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the store for one writer; the kernel lets go when the process dies, however it dies."""
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
