"""Reading a map store: released maps, earlier releases and runs under way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import icechunk
import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.sync import sync

from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import UNWRITTEN, Legend
from terrafine.mapping.layout import (
    FILLS,
    Layout,
    ZoneLayout,
    overview_grid,
    read_json,
    read_layout,
)
from terrafine.mapping.place import MAIN, Place, open_repository, storage_errors


@dataclass(frozen=True)
class RunRecord:
    """Where a map comes from. ``run``: branch of the store; ``model``, ``spec``: digests;
    ``base``: the release that has the shards that this run did not map; ``settings``: key of the
    spec -> value, of all outside the section ``map`` that pixels depend on."""

    run: str
    model: str
    spec: str
    scenes: tuple[str, ...]
    mapping: dict[str, Any]
    base: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """What a run's pixels depend on beside its model, its scenes' names and the section ``map``.

    ``settings``: as in :class:`RunRecord`; ``stamps``: scene -> what changes when its files do,
    where that is known.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    stamps: Mapping[str, str] = field(default_factory=dict)


UNKNOWN = Origin()


@dataclass(frozen=True)
class Release:
    """A named map that stays readable under its name."""

    name: str
    snapshot: str
    written_at: datetime
    record: RunRecord
    current: bool


@dataclass(frozen=True)
class Commit:
    """One commit of a store. ``kind``: layout, run (its start), wave or overviews; ``shards``: what
    a wave holds; ``zone``: whose overviews."""

    snapshot: str
    written_at: datetime
    kind: str
    shards: tuple[tuple[str, Window], ...]
    zone: str | None


@dataclass(frozen=True)
class Explanation:
    """Why a pixel is what it is."""

    landcover: int
    confidence: int
    scene: str | None
    record: RunRecord | None
    snapshot: str | None
    written_at: datetime | None


class MapReader:
    """A map store, open for reading.

    ``ref`` names a state of the store: "main" (the current release), a release, a run's branch, or
    a snapshot.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        with storage_errors(path, "opened"):
            self._repository = open_repository(path)
            tip = self._repository.lookup_branch(MAIN)
            # zarr takes a snapshot that cannot be read for an empty one
            self._repository.lookup_snapshot(tip)
            root = self._root(tip)
            self.layout: Layout = read_layout(root, where=str(path))

    @property
    def legend(self) -> Legend:
        """The legend of every map in the store."""
        return self.layout.legend

    def zones(self) -> tuple[str, ...]:
        """Names of the zones."""
        return tuple(self.layout.zones)

    def grid(self, zone: str) -> PixelGrid:
        """The pixel grid of a zone."""
        return self._zone(zone).grid

    def window(self, zone: str) -> Window:
        """The extent of a zone's arrays in global pixel numbers."""
        return self._zone(zone).extent

    def read(
        self, zone: str, window: Window, array: str = "landcover", ref: str = MAIN
    ) -> npt.NDArray[Any]:
        """Pixels of ``landcover`` (uint8 codes), ``confidence`` (uint8 percent) or ``source``.

        What was never written, and what lies outside the zone, is 255 (``source``, uint16: 65535).
        """
        if array not in FILLS:
            raise MapStoreError(f"{self.path}: no array {array!r}; it has {', '.join(FILLS)}")
        dtype, fill = FILLS[array]
        extent = self._zone(zone).extent
        out_HW = np.full(window.shape, fill, dtype)
        inside = window.intersection(extent)
        if inside is not None:
            with storage_errors(self.path, "read"):
                stored = self._array(f"{zone}/{array}", ref)
                out_HW[inside.slices(window)] = stored[inside.slices(extent)]
        return out_HW

    def written(self, zone: str, ref: str = MAIN) -> set[Window]:
        """The shards of a zone that hold anything at ``ref``."""
        layout = self._zone(zone)
        with storage_errors(self.path, "read"):
            session = self._repository.readonly_session(snapshot_id=self.snapshot(ref))
            places = sync(_listed(session.chunk_coordinates(f"/{zone}/landcover")))
        return {layout.shard_at(row, col) for row, col in places}

    def written_at(self, ref: str = MAIN) -> datetime:
        """When a state of the store was committed."""
        with storage_errors(self.path, "read"):
            return self._repository.lookup_snapshot(self.snapshot(ref)).written_at

    def zarr_store(self, ref: str = MAIN) -> icechunk.IcechunkStore:
        """A state of the store as Zarr sees it, read-only."""
        with storage_errors(self.path, "read"):
            return self._repository.readonly_session(snapshot_id=self.snapshot(ref)).store

    def overviews(self, zone: str, ref: str = MAIN) -> tuple[int, ...]:
        """How many times coarser the stored overviews of a zone are, finest first."""
        self._zone(zone)
        with storage_errors(self.path, "read"):
            group = self._root(self.snapshot(ref))[zone]
            assert isinstance(group, zarr.Group)
            names = [n for n in group.array_keys() if n.startswith("landcover_")]
        return tuple(sorted(int(n.removeprefix("landcover_")) for n in names))

    def overview(
        self, zone: str, factor: int, ref: str = MAIN
    ) -> tuple[npt.NDArray[np.uint8], PixelGrid, Window]:
        """A stored overview of the class map with the grid and window it covers."""
        if factor not in self.overviews(zone, ref):
            raise MapStoreError(
                f"{self.path}: zone {zone} has no overview by {factor} at {ref!r}; publish the map"
            )
        grid, window = overview_grid(self._zone(zone), factor)
        with storage_errors(self.path, "read"):
            return np.asarray(self._array(f"{zone}/landcover_{factor}", ref)[:]), grid, window

    def commits(self, ref: str = MAIN) -> Iterator[Commit]:
        """The history of a state of the store, newest first."""
        with storage_errors(self.path, "read"):
            for info in self._ancestry(ref):
                told = info.metadata
                yield Commit(
                    info.id,
                    info.written_at,
                    str(told.get("kind", "")),
                    tuple(map(self._key, told.get("shards", ()))),
                    told.get("zone"),
                )

    def planned(self, ref: str = MAIN) -> set[tuple[str, Window]]:
        """The shards that the run behind a state of the store maps; none before the first run."""
        with storage_errors(self.path, "read"):
            stored = read_json(self._root(self.snapshot(ref)), "planned")
        return {self._key(shard) for shard in stored or ()}

    def stale(self, ref: str = MAIN) -> set[tuple[str, Window]]:
        """The shards that the scenes of the run behind a state change, and that it did not map."""
        with storage_errors(self.path, "read"):
            stored = read_json(self._root(self.snapshot(ref)), "stale")
        return {self._key(shard) for shard in stored or ()}

    def stamps(self, ref: str = MAIN) -> dict[str, str]:
        """Scene -> what changes when its files do, as far as the run behind a state knew it."""
        with storage_errors(self.path, "read"):
            return read_json(self._root(self.snapshot(ref)), "stamps") or {}

    def provenance(self, ref: str = MAIN) -> RunRecord | None:
        """The run behind a state of the store; None before the first release."""
        with storage_errors(self.path, "read"):
            root = self._root(self.snapshot(ref))
            return _record(root) if "run" in root.attrs else None

    def explain(self, zone: str, row: int, col: int, ref: str = MAIN) -> Explanation:
        """Scene, model, run and commit of one pixel, given by its global row and column."""
        pixel = Window(row, col, 1, 1)
        code, percent, source = (int(self.read(zone, pixel, name, ref)[0, 0]) for name in FILLS)
        record = self.provenance(ref)
        size = self._zone(zone).shard
        shard = [zone, row // size * size, col // size * size]
        commit = None
        if code != UNWRITTEN:
            with storage_errors(self.path, "read"):
                history = self._ancestry(ref)
                commit = next((i for i in history if shard in i.metadata.get("shards", [])), None)
            if commit is not None:
                # a shard may come from the run of the release that this one started from
                record = self.provenance(commit.id)
        scenes = record.scenes if record else ()
        return Explanation(
            landcover=code,
            confidence=percent,
            scene=scenes[source - 1] if 0 < source <= len(scenes) else None,
            record=record,
            snapshot=commit.id if commit else None,
            written_at=commit.written_at if commit else None,
        )

    def releases(self) -> list[Release]:
        """Every release, oldest first."""
        with storage_errors(self.path, "read"):
            current = self._repository.lookup_branch(MAIN)
            tags = {
                name: self._repository.lookup_tag(name) for name in self._repository.list_tags()
            }
            found = [
                Release(
                    name,
                    snapshot,
                    self._repository.lookup_snapshot(snapshot).written_at,
                    _record(self._root(snapshot)),
                    snapshot == current,
                )
                for name, snapshot in tags.items()
            ]
        return sorted(found, key=lambda release: (release.written_at, release.name))

    def runs(self) -> tuple[str, ...]:
        """Branches of the runs, finished or not."""
        with storage_errors(self.path, "read"):
            return tuple(sorted(b for b in self._repository.list_branches() if b != MAIN))

    def snapshot(self, ref: str) -> str:
        """The snapshot that ``ref`` stands for now; MapStoreError with what there is."""
        with storage_errors(self.path, "read"):
            if ref in self._repository.list_branches():
                return self._repository.lookup_branch(ref)
            if ref in self._repository.list_tags():
                return self._repository.lookup_tag(ref)
            try:
                return self._repository.lookup_snapshot(ref).id
            except icechunk.IcechunkError as error:
                releases = ", ".join(sorted(self._repository.list_tags())) or "none yet"
                raise MapStoreError(
                    f"{self.path}: no release, run or snapshot {ref!r}; releases: {releases}; "
                    f"runs: {', '.join(self.runs()) or 'none yet'}"
                ) from error

    def _zone(self, zone: str) -> ZoneLayout:
        try:
            return self.layout.zones[zone]
        except KeyError as error:
            raise MapStoreError(
                f"{self.path}: no zone {zone!r}; it has {', '.join(self.layout.zones)}"
            ) from error

    def _key(self, shard: list[Any]) -> tuple[str, Window]:
        zone, row, col = shard
        size = self._zone(zone).shard
        return zone, Window(row, col, size, size)

    def _root(self, snapshot: str) -> zarr.Group:
        session = self._repository.readonly_session(snapshot_id=snapshot)
        try:
            return zarr.open_group(session.store, mode="r")
        except FileNotFoundError as error:
            # zarr takes a snapshot that cannot be read for an empty one
            self._repository.lookup_snapshot(snapshot)
            raise MapStoreError(
                f"{self.path}: an Icechunk store, but no map; map into a new folder"
            ) from error

    def _array(self, name: str, ref: str) -> zarr.Array[Any]:
        array = self._root(self.snapshot(ref))[name]
        assert isinstance(array, zarr.Array)
        return array

    def _ancestry(self, ref: str) -> Iterator[icechunk.SnapshotInfo]:
        return self._repository.ancestry(snapshot_id=self.snapshot(ref))


def open_map(path: Place) -> MapReader:
    """Open a map store for reading; MapStoreError when there is none."""
    return MapReader(path)


def _record(root: zarr.Group) -> RunRecord:
    stored: Any = root.attrs["run"]
    scenes = read_json(root, "scenes")
    if scenes is None:
        raise MapStoreError(
            f"run {stored['run']} of the map store has lost its list of scenes; nobody can say "
            "what its pixels were made from: map into a new store"
        )
    return RunRecord(
        run=stored["run"],
        model=stored["model"],
        spec=stored["spec"],
        scenes=tuple(scenes),
        mapping=stored["mapping"],
        base=stored.get("base"),
        settings=stored.get("settings", {}),
    )


async def _listed(places: AsyncIterator[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [place async for place in places]
