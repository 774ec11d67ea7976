"""From mosaics and a label product to a chip store (Dong et al. 2020, section 2.3)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zarr
from pydantic import ValidationError
from zarr.storage import ObjectStore

from terrafine.chips.layout import DTYPES, SHARDS, TABLE, StoreInfo, ZoneGrid, create_arrays
from terrafine.chips.plan import RECORDS, BuildPlan, record_name
from terrafine.chips.record import ChipRecord, GroupRecord
from terrafine.chips.runner import BuildRunner, in_turn
from terrafine.chips.store import ChipStore, open_chips
from terrafine.chips.table import chip_table, parquet
from terrafine.errors import ChipStoreError, LegendError, RasterError
from terrafine.progress import progress
from terrafine.raster import (
    ClassRaster,
    ListedScene,
    Mosaic,
    Scene,
    check_overlap,
    scene_names,
)
from terrafine.spec import MapSpec
from terrafine.storage import Storage

# Says of a place that a chip store is being built there, and from what.
_PLAN = "building.json"
_NO_PLAN = b"{}"
_FINISHED = {"zarr.json", TABLE, SHARDS}
_READERS = 16


def build_chips(
    location: str | Path | Storage,
    *,
    spec: MapSpec,
    mosaics: Mapping[str, Mosaic],
    labels: ClassRaster,
    runner: BuildRunner = in_turn,
) -> ChipStore:
    """Cut every mosaic into chips on its global grid, with the product's labels.

    A chip is kept when at most ``chips.max_missing`` of its pixels lack image or label; where the
    image is missing the label is 0. The work is done group by group, wherever ``runner`` has it
    done; the store's bytes do not depend on that. A store cannot be opened before it is whole; a
    build that was killed, ran out of space or could not read the imagery goes on where it was when
    it is started again. An earlier chip store in the place is replaced.

    RasterError when imagery or product cannot be read (now): what is finished is kept. LegendError
    for the product's codes, ChipStoreError when a scene holds no valid pixel, no chip can be kept,
    the chips cannot be split, or something else is in the place: nothing is left then.
    StorageError when it cannot be written.
    """
    check_overlap(labels, mosaics.values())
    storage = location if isinstance(location, Storage) else Storage.at(location)
    plan = BuildPlan.of(storage, spec, mosaics, labels)
    done = _begin(plan)
    try:
        if not _is_whole(storage):
            records = _build(plan, done, runner)
            _require_valid_scenes(mosaics, {n for r in records for n in r.seen}, spec.chips.size)
            _finish(plan, records)
    except (RasterError, LegendError, ChipStoreError) as error:
        # with other inputs it would be another store; what cannot be read now may be later
        if not (isinstance(error, RasterError) and storage.names(RECORDS)):
            _clear(storage)
            storage.clear()
        raise
    storage.clear(RECORDS)
    storage.delete([_PLAN])
    return open_chips(storage)


def _begin(plan: BuildPlan) -> dict[int, GroupRecord]:
    """Make the place ready and say which groups are done there already."""
    storage = plan.storage
    present = storage.sizes()
    mark = storage.read(_PLAN)
    stamp = json.dumps({"plan": plan.digest()}).encode()
    if mark == stamp:
        storage.sweep()
        return _records(plan, present)
    if present and mark is None and not present.keys() >= _FINISHED:
        raise ChipStoreError(f"{storage}: is there and is no chip store; choose another folder")
    _clear(storage)
    with storage.explained("write"):
        create_arrays(
            storage,
            slots=plan.slots,
            bands=len(plan.spec.imagery.bands),
            size=plan.spec.chips.size,
        )
    storage.write(_PLAN, stamp)
    return {}


def _clear(storage: Storage) -> None:
    """Remove all but a mark of no plan, by which the next run knows what a kill leaves here."""
    storage.write(_PLAN, _NO_PLAN)
    for folder in (*DTYPES, RECORDS):
        storage.clear(folder)
    storage.delete(name for name in storage.names() if name != _PLAN)


def _is_whole(storage: Storage) -> bool:
    """Whether the attributes, which are written last of all, are there."""
    with storage.explained("read"):
        return bool(zarr.open_group(ObjectStore(storage.store), mode="r").attrs)


def _records(plan: BuildPlan, present: Mapping[str, int]) -> dict[int, GroupRecord]:
    """Records of groups whose shards are there as well."""
    groups = [group for group in plan.groups if record_name(group) in present]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(plan.storage.read, [record_name(group) for group in groups])
        read = {group: _record(data) for group, data in zip(groups, found, strict=True)}
    return {
        group: record
        for group, record in read.items()
        if record is not None and record.shards.items() <= present.items()
    }


def _record(data: bytes | None) -> GroupRecord | None:
    """What an earlier run noted, or None where that cannot be read and the group is built again."""
    try:
        return None if data is None else GroupRecord.model_validate_json(data)
    except ValidationError:
        return None


def _build(
    plan: BuildPlan, done: Mapping[int, GroupRecord], runner: BuildRunner
) -> list[GroupRecord]:
    """Records of all groups in their order, those that were not done yet by ``runner``."""
    records = dict(done)
    missing = [group for group in plan.groups if group not in records]
    with progress("label", total=len(plan.tiles), unit="chip") as task:
        task.advance(sum(record.tiles for record in records.values()))
        kept = sum(len(record.chips) for record in records.values())
        for record in _run(runner, plan, missing):
            records[record.group] = record
            kept += len(record.chips)
            task.advance(record.tiles, kept=str(kept))
    return [records[group] for group in plan.groups]


def _run(runner: BuildRunner, plan: BuildPlan, groups: Sequence[int]) -> Iterator[GroupRecord]:
    return runner(plan.build, groups) if groups else iter(())


def _finish(plan: BuildPlan, records: Sequence[GroupRecord]) -> None:
    """Write the table and, last of all, the attributes, which make it a store."""
    spec, storage = plan.spec, plan.storage
    chips = [chip for record in records for chip in record.chips]
    if not chips:
        size = spec.chips.size
        raise ChipStoreError(
            f"{spec.name}: none of {len(plan.tiles)} chips of {size} x {size} has image and label "
            f"on at least {1 - spec.chips.max_missing:.0%} of its pixels; choose a smaller "
            "chips.size or a larger chips.max_missing, or check where the product lies"
        )
    table = parquet(chip_table(chips, plan))
    shards = json.dumps({n: b for record in records for n, b in record.shards.items()}).encode()
    storage.write(TABLE, table)
    storage.write(SHARDS, shards)
    info = _info(plan, chips, table, shards)
    with storage.explained("write"):
        root = zarr.open_group(ObjectStore(storage.store), mode="r+")
        root.attrs.put(info.model_dump(mode="json", by_alias=True))


def _info(plan: BuildPlan, chips: Sequence[ChipRecord], table: bytes, shards: bytes) -> StoreInfo:
    spec = plan.spec
    return StoreInfo(
        legend=spec.resolve_legend(),
        bands=spec.imagery.bands,
        fill=next(iter(plan.mosaics.values())).fill,
        size=spec.chips.size,
        slots=plan.slots,
        chips=len(chips),
        zones={
            zone: ZoneGrid(crs=m.grid.crs, dx=m.grid.dx, dy=m.grid.dy, x0=m.grid.x0, y0=m.grid.y0)
            for zone, m in plan.mosaics.items()
        },
        scenes=scene_names(plan.mosaics),
        spec_sha256=plan.spec_digest,
        table_sha256=hashlib.sha256(table).hexdigest(),
        shards_sha256=hashlib.sha256(shards).hexdigest(),
    )


def _require_valid_scenes(mosaics: Mapping[str, Mosaic], seen: set[int], size: int) -> None:
    for mosaic in mosaics.values():
        # nobody looks through a whole catalogue, whose scenes may be unreadable besides
        if mosaic.skips:
            continue
        for number, scene in zip(mosaic.numbers, mosaic.scenes, strict=True):
            if number not in seen:
                _require_valid_pixels(scene, size)


def _require_valid_pixels(scene: Scene | ListedScene, size: int) -> None:
    """A scene that gave no pixel may lie under others; refuse it when it has none at all."""
    for tile in scene.window.tiles(size):
        if (scene.read(tile) != scene.fill).all(axis=0).any():
            return
    raise ChipStoreError(
        f"{scene.where}: every pixel is missing (value {scene.fill} "
        "or nodata in at least one band); take the scene out of the spec, or correct "
        "imagery.nodata"
    )
