"""A release brought up to date: only what new scenes change, and what it lacks, is mapped.

The update's run starts from the release's snapshot, so all other shards are the release's own, not
copies. Shards that are mapped again come out as in a map of all scenes from nothing. Those that a
region leaves out are remembered as stale, and are the next update's, where its region has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend
from terrafine.mapping.layout import FILLS
from terrafine.mapping.plan import Imagery, Plan
from terrafine.mapping.predictor import UInt16Array
from terrafine.mapping.reader import UNKNOWN, MapReader, Origin, RunRecord
from terrafine.mapping.write import ShardKey
from terrafine.raster import Region
from terrafine.spec import MappingSpec

_MOST_SCENES = FILLS["source"][1] - 1

# keys of the section `map` that an update must not change
_SEAMS = ("core", "halo", "enhance", "predictor")


@dataclass(frozen=True)
class Base:
    """What an update starts from. ``added``: zone -> the scenes that are new, or have other
    files, since ``release``."""

    release: str
    added: Mapping[str, Imagery]


@dataclass(frozen=True)
class Update:
    """What :func:`map_all` maps of it: shards, imagery that counts scenes on, and their names.

    ``stale``: shards that stay as they are, though scenes have changed; ``origin``: of the scenes
    that are gone from the imagery, too.
    """

    plans: list[Plan]
    imagery: dict[str, Imagery]
    scenes: tuple[str, ...]
    stale: frozenset[ShardKey]
    origin: Origin


@dataclass(frozen=True)
class _Renumbered:
    """Imagery whose scenes have the numbers that the base's map gave them, new ones the next."""

    below: Imagery
    table: UInt16Array

    @property
    def zone(self) -> str:
        return self.below.zone

    @property
    def grid(self) -> PixelGrid:
        return self.below.grid

    @property
    def window(self) -> Window:
        return self.below.window

    @property
    def fill(self) -> int:
        return self.below.fill

    @property
    def unreadable(self) -> Mapping[str, str]:
        return self.below.unreadable

    def touches(self, window: Window) -> bool:
        return self.below.touches(window)

    def read(self, window: Window) -> tuple[UInt16Array, UInt16Array]:
        image_CHW, source_HW = self.below.read(window)
        return image_CHW, self.table[source_HW]


def release_record(store: MapReader, release: str) -> RunRecord:
    """The run behind a release; MapStoreError when there is no release of that name."""
    found = {known.name: known.record for known in store.releases()}
    if release not in found:
        raise MapStoreError(
            f"{store.path}: no release {release!r}; releases: {', '.join(found) or 'none yet'}"
        )
    return found[release]


def plan_update(
    store: MapReader,
    base: Base,
    imagery: Mapping[str, Imagery],
    *,
    spec: MappingSpec,
    legend: Legend,
    model: str,
    scenes: Iterable[str],
    region: Region | None = None,
    origin: Origin = UNKNOWN,
) -> Update:
    """The shards of ``region`` that are not in ``base`` as all scenes make them.

    These are the shards that the added scenes can change, those that an update before left stale,
    and those that were never mapped. ``imagery`` has all scenes, old and new, in the order that
    ``scenes`` names them. A shard's pixels depend on all that its windows see: on a scene beside
    it, too. Scenes of the base that ``imagery`` no longer has stay in the shards that are not
    mapped again.
    MapStoreError when the map cannot take them: another legend, model, cut, grid, engine or
    setting of the imagery, or shards outside it; or when there is nothing to do.
    """
    record = release_record(store, base.release)
    _require_same(store, record, spec, legend, model, origin)
    enhances = spec.enhance.enabled and legend.enhanced is not None
    stale, plans = store.stale(base.release), []
    for zone, all_scenes in imagery.items():
        added, here = base.added.get(zone), store.layout.zones.get(zone)
        fits = here is not None and (here.grid, here.shard) == (all_scenes.grid, spec.shard)
        written = store.written(zone, base.release) if fits else set()
        if added is not None:
            stale |= {
                (zone, shard)
                for shard in written
                if added.touches(_seen(shard, spec, enhances=enhances))
                and all_scenes.touches(shard)
            }
        plan = Plan.of(all_scenes, spec, region)
        todo = (s for s in plan.touched if (zone, s) in stale or s not in written)
        plans.append(replace(plan, touched=tuple(todo)))
    planned = {(plan.zone, shard) for plan in plans for shard in plan.touched}
    if not planned:
        raise MapStoreError(
            f"{store.path}: no scene is new since release {base.release!r}"
            f"{f' in {region.where}' if region else ''}; there is nothing to map again"
        )
    misfit = store.layout.difference(plans, legend)
    if misfit:
        raise MapStoreError(
            f"{store.path}: this map store was made for {misfit}; map everything into a new store"
        )
    numbered, names = renumbered(imagery, scenes, record.scenes, where=str(store.path))
    stamps = {**store.stamps(base.release), **origin.stamps}
    return Update(
        plans, numbered, names, frozenset(stale - planned), replace(origin, stamps=stamps)
    )


def _require_same(
    store: MapReader,
    record: RunRecord,
    spec: MappingSpec,
    legend: Legend,
    model: str,
    origin: Origin,
) -> None:
    different = None
    if store.legend.digest != legend.digest:
        different = f"legend {store.legend.name!r}, not {legend.name!r} as it is now"
    elif record.model != model:
        different = f"model {record.model[:12]}, not {model[:12]}"
    before, now = {"predictor": "onnx", **record.mapping}, spec.model_dump(mode="json")
    pairs = [(f"map.{key}", before.get(key), now[key]) for key in _SEAMS]
    # a release of an older version has kept none
    keys = sorted(record.settings.keys() | origin.settings.keys()) if record.settings else []
    pairs += [(key, record.settings.get(key), origin.settings.get(key)) for key in keys]
    for key, then, today in pairs:
        if different is None and then != today:
            different = f"{key} {then}, not {today}"
    if different:
        raise MapStoreError(
            f"{store.path}: the release was mapped with {different}; an update would leave seams, "
            "so update with the same one, or map everything again"
        )


def _seen(shard: Window, spec: MappingSpec, *, enhances: bool) -> Window:
    """All that the pixels of a shard depend on: as ``compute_shard`` reads it."""
    around = shard.buffered(spec.enhance.block) if enhances else shard
    return around.snapped(spec.core).buffered(spec.halo)


def renumbered(
    imagery: Mapping[str, Imagery], scenes: Iterable[str], before: tuple[str, ...], *, where: str
) -> tuple[dict[str, Imagery], tuple[str, ...]]:
    """Imagery that counts its ``scenes`` as a map did, whose scenes were those of ``before``; new
    ones have the next numbers. And the names of all, in the order of their numbers."""
    now = tuple(scenes)
    names = tuple(dict.fromkeys((*before, *now)))
    if len(names) > _MOST_SCENES:
        raise MapStoreError(
            f"{where}: {len(names)} scenes are more than the {_MOST_SCENES} that a map can tell "
            "apart; map everything into a new store"
        )
    place = {name: number for number, name in enumerate(names, start=1)}
    table = np.array([0, *(place[name] for name in now)], np.uint16)
    return {zone: _Renumbered(below, table) for zone, below in imagery.items()}, names
