"""The chip store: fine images and coarse labels with their georeferencing, in Zarr v3."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import geopandas
import numpy as np
import numpy.typing as npt
import zarr
from pyarrow import ArrowException
from pydantic import TypeAdapter, ValidationError
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from terrafine.chips.layout import (
    DAMAGE,
    DTYPES,
    SHARDS,
    TABLE,
    StoreInfo,
    groups_of,
    open_arrays,
    require_arrays,
    shard_name,
)
from terrafine.chips.shards import ShardReader
from terrafine.errors import ChipStoreError, StorageError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend, UInt8Array
from terrafine.raster import UInt16Array
from terrafine.storage import Storage

IntArray = npt.NDArray[np.intp]

_METADATA = ("zarr.json", *(f"{name}/zarr.json" for name in DTYPES))
_SIZES = TypeAdapter(dict[str, int])
_AGAIN = "delete it and run `terrafine label SPEC` again"


@dataclass(frozen=True)
class ChipStore:
    """Chips on disk or in a bucket; of a crop only the chunks it touches are read.

    ``table``: one row per chip, with its footprint in EPSG:4326: ``id``, ``position`` (slot in the
    arrays), ``zone``, ``crs``, ``row``, ``col`` (global pixel numbers), ``transform`` (a, b, c, d,
    e, f), ``split`` ("train", "validation", or "overlap": in neither), ``share_<class>`` of all
    pixels, ``missing_share`` (no image or no label), ``nodata_share`` (no image), ``agreement``
    (NaN until the filter stage, which writes the table anew), ``sources`` (scene names),
    ``sha256``.
    """

    storage: Storage
    info: StoreInfo
    table: geopandas.GeoDataFrame
    positions: IntArray
    shards: ShardReader

    @property
    def legend(self) -> Legend:
        """The classes of the labels."""
        return self.info.legend

    @property
    def fill(self) -> int:
        """The uint16 that marks missing pixels."""
        return self.info.fill

    @property
    def bands(self) -> int:
        """Bands of an image."""
        return len(self.info.bands)

    @property
    def size(self) -> int:
        """Pixels a side of a chip."""
        return self.info.size

    def __len__(self) -> int:
        return self.info.chips

    def indexes(self, split: str) -> IntArray:
        """Indexes of the chips of one part of the split."""
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    def name(self, index: int) -> str:
        """The id of a chip."""
        return self._names[index]

    @cached_property
    def _names(self) -> list[str]:
        """A list: a training's fingerprint asks for every one of them."""
        return [str(name) for name in self.table["id"]]

    def crop(self, index: int, row: int, col: int, size: int) -> tuple[UInt16Array, UInt8Array]:
        """(image_CHW uint16, label_HW uint8 codes) of a square inside a chip.

        Reads only the chunks it touches. ChipStoreError when they are damaged, StorageError when
        they cannot be fetched.
        """
        if not (0 <= row <= self.size - size and 0 <= col <= self.size - size):
            raise ValueError(f"crop of {size} at {row}, {col} leaves the chip of {self.size}")
        part = slice(row, row + size), slice(col, col + size)
        return self._image(index, part), self._label(index, part)

    def image(self, index: int) -> UInt16Array:
        """image_CHW of a whole chip, uint16 in the sensor's numbers."""
        return self._image(index, self._whole)

    def label(self, index: int) -> UInt8Array:
        """label_HW of a whole chip, uint8 legend codes, 0: none."""
        return self._label(index, self._whole)

    def grid(self, index: int) -> PixelGrid:
        """The pixel grid a chip lies on."""
        return self.info.zones[str(self.table["zone"].iloc[index])].grid()

    def window(self, index: int) -> Window:
        """Where a chip lies on its grid."""
        row, col = (int(self.table[key].iloc[index]) for key in ("row", "col"))
        return Window(row, col, self.size, self.size)

    def class_shares(self) -> npt.NDArray[np.float64]:
        """(chips, classes) share of every class of the legend on every chip."""
        shares_NK = self.table[[f"share_{name}" for name in self.legend.names]].to_numpy(np.float64)
        return cast(npt.NDArray[np.float64], shares_NK)

    def verify(self, most: int | None = None) -> None:
        """Raise ChipStoreError naming the first chip whose pixels are not those once written.

        ``most``: check so many chips, spread evenly, instead of all. Pixels damaged by a disk are
        found without it, whenever they are read; this is for pixels that someone changed.
        """
        step = 1 if most is None else max(1, -(-len(self) // most))
        threads = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self._verify_chip, range(0, len(self), step)):
                pass

    def _verify_chip(self, index: int) -> None:
        digest = chip_digest(self.image(index), self.label(index))
        if digest != self.table["sha256"].iloc[index]:
            raise ChipStoreError(
                f"{self.storage}: chip {self.name(index)} was edited after it was written (its "
                "SHA-256 differs); delete the store and run `terrafine label SPEC` again"
            )

    @property
    def _whole(self) -> tuple[slice, slice]:
        return slice(0, self.size), slice(0, self.size)

    def _image(self, index: int, part: tuple[slice, slice]) -> UInt16Array:
        return cast(UInt16Array, self._pixels("image", index, part))

    def _label(self, index: int, part: tuple[slice, slice]) -> UInt8Array:
        return cast(UInt8Array, self._pixels("label", index, part))

    def _pixels(self, name: str, index: int, part: tuple[slice, slice]) -> npt.NDArray[Any]:
        try:
            return self.shards.read(name, int(self.positions[index]), *part)
        except StorageError:  # which says nothing of the store itself
            raise
        except DAMAGE as error:
            raise ChipStoreError(
                f"{self.storage}: {name} of chip {self.name(index)} cannot be read ({error}); "
                f"if the store is damaged, {_AGAIN}"
            ) from error


def chip_digest(image_CHW: UInt16Array, label_HW: UInt8Array) -> str:
    """SHA-256 of a chip's pixels, image (little-endian, band by band) then label."""
    digest = hashlib.sha256(np.ascontiguousarray(image_CHW, "<u2").data)
    digest.update(np.ascontiguousarray(label_HW, np.uint8).data)
    return digest.hexdigest()


def open_chips(location: str | Path | Storage) -> ChipStore:
    """Open a chip store at a path or URL; the shards are listed once and no pixel is read.

    ChipStoreError when it is missing, not finished, incomplete (naming the shard), edited, or of
    another kind; StorageError when the place cannot be reached.
    """
    storage = location if isinstance(location, Storage) else Storage.at(location)
    here = storage.path is None or storage.path.is_dir()
    found = {name: storage.read(name) for name in (*_METADATA, TABLE, SHARDS)} if here else {}
    metadata = {n: data for n in _METADATA if (data := found.get(n)) is not None}
    table, shards = found.get(TABLE), found.get(SHARDS)
    if "zarr.json" not in metadata or table is None or shards is None:
        raise ChipStoreError(
            f"{storage}: no chip store here, or its building has not come to an end; run "
            "`terrafine label SPEC` first"
        )
    try:
        group = _group(metadata)
        info = StoreInfo.model_validate(dict(group.attrs))
        arrays = open_arrays(group)
        store = _store(storage, info, table, shards)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ChipStoreError(
            f"{storage}: not a chip store of this version: {'.'.join(map(str, problem['loc']))}: "
            f"{problem['msg']}; {_AGAIN}"
        ) from error
    except ChipStoreError:
        raise
    except (*DAMAGE, ArrowException) as error:
        raise ChipStoreError(f"{storage}: the chip store is damaged ({error}); {_AGAIN}") from error
    require_arrays(storage, arrays.items(), info)
    _require_complete(store)
    return store


def _group(metadata: Mapping[str, bytes]) -> zarr.Group:
    """What zarr reads in metadata that were fetched before: what it says is of them alone."""
    objects: dict[str, Buffer] = {n: cpu.Buffer.from_bytes(d) for n, d in metadata.items()}
    return zarr.open_group(MemoryStore(objects, read_only=True), mode="r")


def _store(storage: Storage, info: StoreInfo, table: bytes, shards: bytes) -> ChipStore:
    digests = {TABLE: (table, info.table_sha256), SHARDS: (shards, info.shards_sha256)}
    for name, (data, expected) in digests.items():
        if hashlib.sha256(data).hexdigest() != expected:
            raise ChipStoreError(
                f"{storage}: {name} was edited or damaged after it was written; {_AGAIN}"
            )
    rows = geopandas.read_parquet(io.BytesIO(table))
    return ChipStore(
        storage=storage,
        info=info,
        table=rows,
        positions=rows["position"].to_numpy(np.intp),
        shards=ShardReader(
            storage, bands=len(info.bands), size=info.size, shards=_SIZES.validate_json(shards)
        ),
    )


def _require_complete(store: ChipStore) -> None:
    if len(store.table) != len(store):
        raise ChipStoreError(
            f"{store.storage}: the table names {len(store.table)} chips, the store holds "
            f"{len(store)}; {_AGAIN}"
        )
    expected = store.shards.shards
    present = store.storage.sizes("image") | store.storage.sizes("label")
    for group in groups_of(store.positions).tolist():
        for name in (shard_name("image", group), shard_name("label", group)):
            if name not in present:
                raise ChipStoreError(
                    f"{store.storage}: incomplete: shard {name} is not there "
                    f"({_missing(expected, present)}); {_AGAIN}"
                )
            if present[name] != expected[name]:
                raise ChipStoreError(
                    f"{store.storage}: shard {name} has {present[name]} bytes, "
                    f"{expected[name]} were written; {_AGAIN}"
                )


def _missing(expected: Mapping[str, int], present: Mapping[str, int]) -> str:
    return f"{len(set(expected) - set(present))} of {len(expected)} are missing"
