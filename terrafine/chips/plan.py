"""What a chip store is built from, cut into groups of tiles that each fill one shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import zarr
from zarr.storage import ObjectStore

import terrafine
from terrafine.chips.layout import CHIPS_PER_SHARD, open_arrays, shard_name
from terrafine.chips.record import ChipRecord, GroupRecord
from terrafine.chips.store import chip_digest
from terrafine.geometry import Window
from terrafine.legend import NO_CLASS, UInt8Array
from terrafine.raster import ClassRaster, Mosaic, UInt16Array
from terrafine.spec import MapSpec
from terrafine.storage import Storage

RECORDS = "build"


@dataclass(frozen=True)
class BuildPlan:
    """Every tile that a scene touches, in groups; any process can build any group.

    ``tiles``: zone and upper left pixel. Pickled once for every worker.
    """

    storage: Storage
    spec: MapSpec
    mosaics: Mapping[str, Mosaic]
    labels: ClassRaster
    tiles: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(
        cls, storage: Storage, spec: MapSpec, mosaics: Mapping[str, Mosaic], labels: ClassRaster
    ) -> BuildPlan:
        """Mosaic by mosaic, row by row, so that neighbours read the same blocks of a file."""
        tiles = tuple(
            (zone, tile.row, tile.col)
            for zone, mosaic in mosaics.items()
            for tile in mosaic.window.tiles(spec.chips.size)
            if mosaic.touches(tile)
        )
        return cls(storage, spec, mosaics, labels, tiles)

    @property
    def groups(self) -> range:
        """Numbers of the groups."""
        return range(-(-len(self.tiles) // CHIPS_PER_SHARD))

    @property
    def slots(self) -> int:
        """Places in the arrays: whole shards."""
        return len(self.groups) * CHIPS_PER_SHARD

    @property
    def spec_digest(self) -> str:
        """Of the parts of the spec that the chips depend on."""
        return self.spec.digest("seed", "legend", "imagery", "labels", "chips")

    def digest(self) -> str:
        """What a build must have in common with an earlier one to go on where that stopped."""
        data = [terrafine.__version__, self.spec_digest, self.tiles]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()

    def place(self, tile: int) -> tuple[Mosaic, Window]:
        """Mosaic and window of a tile."""
        zone, row, col = self.tiles[tile]
        size = self.spec.chips.size
        return self.mosaics[zone], Window(row, col, size, size)

    def build(self, group: int) -> GroupRecord:
        """Cut a group's tiles, write their two shards, then the record; a pure function.

        RasterError / LegendError of the inputs, StorageError.
        """
        start = group * CHIPS_PER_SHARD
        stop = min(start + CHIPS_PER_SHARD, len(self.tiles))
        size, bands = self.spec.chips.size, len(self.spec.imagery.bands)
        image_NCHW = np.zeros((CHIPS_PER_SHARD, bands, size, size), np.uint16)
        label_NHW = np.zeros((CHIPS_PER_SHARD, size, size), np.uint8)
        chips: list[ChipRecord] = []
        seen: set[int] = set()
        for tile in range(start, stop):
            cut = self._cut(tile)
            seen |= cut.numbers
            if cut.kept:
                image_NCHW[len(chips)], label_NHW[len(chips)] = cut.image_CHW, cut.label_HW
                chips.append(self._record(cut, tile, start + len(chips)))
        shards = self._write(group, image_NCHW, label_NHW) if chips else {}
        record = GroupRecord(
            group=group,
            tiles=stop - start,
            chips=tuple(chips),
            seen=tuple(sorted(seen)),
            shards=shards,
        )
        self.storage.write(record_name(group), record.model_dump_json().encode())
        return record

    def _cut(self, tile: int) -> _Cut:
        mosaic, window = self.place(tile)
        image_CHW, source_HW = mosaic.read(window)
        numbers = {int(number) for number in np.unique(source_HW) if number}
        bare_HW = source_HW == 0
        allowed = self.spec.chips.max_missing
        if np.mean(bare_HW) > allowed:
            return _Cut(image_CHW, np.zeros(window.shape, np.uint8), 1.0, numbers, kept=False)
        label_HW: UInt8Array = np.where(
            bare_HW, np.uint8(NO_CLASS), self.labels.read(mosaic.grid, window)
        )
        kept = bool(np.mean(label_HW == NO_CLASS) <= allowed)
        return _Cut(image_CHW, label_HW, float(np.mean(bare_HW)), numbers, kept)

    def _record(self, cut: _Cut, tile: int, position: int) -> ChipRecord:
        counts = np.bincount(cut.label_HW.ravel(), minlength=256)
        shares_K = counts[list(self.spec.resolve_legend().codes)] / cut.label_HW.size
        return ChipRecord(
            position=position,
            tile=tile,
            shares=tuple(shares_K.tolist()),
            missing_share=float(counts[NO_CLASS] / cut.label_HW.size),
            nodata_share=cut.nodata_share,
            sources=tuple(sorted(cut.numbers)),
            sha256=chip_digest(cut.image_CHW, cut.label_HW),
        )

    def _write(self, group: int, image_NCHW: UInt16Array, label_NHW: UInt8Array) -> dict[str, int]:
        """Bytes of the two shards by name."""
        slots = slice(group * CHIPS_PER_SHARD, (group + 1) * CHIPS_PER_SHARD)
        with self.storage.explained("write"):
            arrays = open_arrays(zarr.open_group(ObjectStore(self.storage.store), mode="r+"))
            arrays["image"][slots] = image_NCHW
            arrays["label"][slots] = label_NHW
        names = (shard_name("image", group), shard_name("label", group))
        return {name: self.storage.size(name) for name in names}


@dataclass(frozen=True)
class _Cut:
    """A tile as read; ``numbers``: of the scenes on it."""

    image_CHW: UInt16Array
    label_HW: UInt8Array
    nodata_share: float
    numbers: set[int]
    kept: bool


def record_name(group: int) -> str:
    """Object that says a group is done."""
    return f"{RECORDS}/{group:08d}.json"
