"""A release with new scenes: only the shards that they change are mapped again.

The update's run starts from the release's snapshot, so all other shards are the release's own, not
copies. Shards that are mapped again come out as in a map of all scenes from nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend
from terrafine.mapping.layout import FILLS, ZoneLayout
from terrafine.mapping.plan import Imagery, Plan
from terrafine.mapping.predictor import UInt16Array
from terrafine.mapping.reader import MapReader, RunRecord
from terrafine.raster import Region
from terrafine.spec import MappingSpec

_MOST_SCENES = FILLS["source"][1] - 1


@dataclass(frozen=True)
class Base:
    """What an update starts from. ``added``: zone -> the scenes that are new since ``release``."""

    release: str
    added: Mapping[str, Imagery]


@dataclass(frozen=True)
class Update:
    """What :func:`map_all` maps of it: shards, imagery that counts scenes on, and their names."""

    plans: list[Plan]
    imagery: dict[str, Imagery]
    scenes: tuple[str, ...]


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
            f"{store.path}: no release {release!r} to start from; releases: "
            f"{', '.join(found) or 'none yet'}"
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
) -> Update:
    """The shards of ``region`` whose pixels the added scenes can change.

    ``imagery`` has all scenes, old and new, in the order that ``scenes`` names them. A shard's
    pixels depend on all that its windows see: on a scene beside it, too. Scenes of the base that
    ``imagery`` no longer has stay in the shards that are not mapped again.
    MapStoreError when the map cannot take them: another legend, model, cut, grid, or a scene
    outside its zones; or when there is nothing to do.
    """
    record = release_record(store, base.release)
    _require_same(store, record, spec, legend, model)
    plans = []
    for zone, all_scenes in imagery.items():
        layout = _layout(store, all_scenes, spec)
        added, enhances = base.added.get(zone), spec.enhance.enabled and legend.enhanced is not None
        touched = [
            shard
            for shard in layout.extent.tiles(layout.shard)
            if added is not None
            and added.touches(_seen(shard, spec, enhances=enhances))
            and all_scenes.touches(shard)
        ]
        if region is not None:
            inside = region.touches(layout.grid.crs, [layout.grid.bounds(s) for s in touched])
            touched = [shard for shard, kept in zip(touched, inside, strict=True) if kept]
        plans.append(Plan(zone, layout.grid, layout.extent, layout.shard, tuple(touched)))
    if not any(plan.touched for plan in plans):
        raise MapStoreError(
            f"{store.path}: no scene is new since release {base.release!r}"
            f"{f' in {region.where}' if region else ''}; there is nothing to map again"
        )
    names, table = _numbering(record.scenes, scenes, where=str(store.path))
    return Update(plans, {zone: _Renumbered(i, table) for zone, i in imagery.items()}, names)


def _require_same(
    store: MapReader, record: RunRecord, spec: MappingSpec, legend: Legend, model: str
) -> None:
    different = None
    if store.legend.digest != legend.digest:
        different = f"legend {store.legend.name!r}, not {legend.name!r} as it is now"
    elif record.model != model:
        different = f"model {record.model[:12]}, not {model[:12]}"
    now = spec.model_dump(mode="json")
    for key in ("core", "halo", "enhance"):
        if different is None and record.mapping.get(key) != now[key]:
            different = f"map.{key} {record.mapping.get(key)}, not {now[key]}"
    before, after = record.mapping.get("predictor", "onnx"), now["predictor"]
    if different is None and (before == "openvino_bf16") != (after == "openvino_bf16"):
        different = f"map.predictor {before}, not {after}"
    if different:
        raise MapStoreError(
            f"{store.path}: the release was mapped with {different}; an update would leave seams, "
            "so update with the same one, or map everything again"
        )


def _layout(store: MapReader, imagery: Imagery, spec: MappingSpec) -> ZoneLayout:
    layout = store.layout.zones.get(imagery.zone)
    if layout is None or layout.grid != imagery.grid or layout.shard != spec.shard:
        there = "no such zone" if layout is None else f"{layout.grid}, shards of {layout.shard}"
        raise MapStoreError(
            f"{store.path}, zone {imagery.zone}: the scenes are for {imagery.grid}, shards of "
            f"{spec.shard}, but the map has {there}; map everything into a new store"
        )
    window = imagery.window
    if window.intersection(layout.extent) != window:
        raise MapStoreError(
            f"{store.path}, zone {imagery.zone}: scenes reach rows {window.row}..{window.stop_row} "
            f"and columns {window.col}..{window.stop_col}, beyond the map ({layout.extent}); map "
            "everything into a new store"
        )
    return layout


def _seen(shard: Window, spec: MappingSpec, *, enhances: bool) -> Window:
    """All that the pixels of a shard depend on: as ``compute_shard`` reads it."""
    around = shard.buffered(spec.enhance.block) if enhances else shard
    return around.snapped(spec.core).buffered(spec.halo)


def _numbering(
    before: tuple[str, ...], scenes: Iterable[str], *, where: str
) -> tuple[tuple[str, ...], UInt16Array]:
    """Names of all scenes, those of before first, and from a scene's number now to its place."""
    now = tuple(scenes)
    names = tuple(dict.fromkeys((*before, *now)))
    if len(names) > _MOST_SCENES:
        raise MapStoreError(
            f"{where}: {len(names)} scenes are more than the {_MOST_SCENES} that a map can tell "
            "apart; map everything into a new store"
        )
    place = {name: number for number, name in enumerate(names, start=1)}
    return names, np.array([0, *(place[name] for name in now)], np.uint16)
