"""The chip store: fine images and coarse labels with their georeferencing, in Zarr v3."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import geopandas
import numpy as np
import numpy.typing as npt
import zarr
from pyarrow import ArrowException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from zarr.codecs import ZstdCodec

from terrafine.errors import ChipStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend, UInt8Array
from terrafine.raster import UInt16Array

IntArray = npt.NDArray[np.intp]

_CHUNK = 256
_TABLE = "chips.parquet"
# What zarr raises on a chunk that is missing, cut off or changed, depending on the codec it meets.
_DAMAGE = (OSError, ValueError, RuntimeError, KeyError)


class ZoneGrid(BaseModel):
    """The pixel grid of one zone, exactly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crs: str
    dx: float
    dy: float
    x0: float
    y0: float

    def grid(self) -> PixelGrid:
        """As the geometry room knows it."""
        return PixelGrid(self.crs, self.dx, self.dy, self.x0, self.y0)


class StoreInfo(BaseModel):
    """Attributes of the store's root group."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    version: Literal["terrafine-chips-1"] = Field("terrafine-chips-1", alias="schema")
    legend: Legend
    bands: tuple[str, ...]
    fill: int
    size: int
    chips: int
    zones: dict[str, ZoneGrid]
    scenes: tuple[str, ...]
    spec_sha256: str
    table_sha256: str


@dataclass(frozen=True)
class ChipStore:
    """Chips on disk; arrays are read chunk by chunk when asked for.

    ``table``: one row per chip, in the arrays' order, with its footprint in EPSG:4326: ``id``,
    ``zone``, ``crs``, ``row``, ``col`` (global pixel numbers), ``transform`` (a, b, c, d, e, f),
    ``split`` ("train", "validation", or "overlap": in neither), ``share_<class>`` of all pixels,
    ``missing_share`` (no image or no label), ``sources`` (scene names), ``sha256``.
    """

    path: Path
    info: StoreInfo
    table: geopandas.GeoDataFrame
    images: zarr.Array[Any]
    labels: zarr.Array[Any]

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

    def crop(self, index: int, row: int, col: int, size: int) -> tuple[UInt16Array, UInt8Array]:
        """(image_CHW uint16, label_HW uint8 codes) of a square inside a chip.

        Reads only the chunks it touches. ChipStoreError when they are damaged.
        """
        if not (0 <= row <= self.size - size and 0 <= col <= self.size - size):
            raise ValueError(f"crop of {size} at {row}, {col} leaves the chip of {self.size}")
        part = slice(row, row + size), slice(col, col + size)
        return self._image(index, part), self._label(index, part)

    def image(self, index: int) -> UInt16Array:
        """image_CHW of a whole chip, uint16 in the sensor's numbers."""
        return self._image(index, (slice(None), slice(None)))

    def label(self, index: int) -> UInt8Array:
        """label_HW of a whole chip, uint8 legend codes, 0: none."""
        return self._label(index, (slice(None), slice(None)))

    def grid(self, index: int) -> PixelGrid:
        """The pixel grid a chip lies on."""
        return self.info.zones[str(self.table["zone"].iloc[index])].grid()

    def window(self, index: int) -> Window:
        """Where a chip lies on its grid."""
        row, col = (int(self.table[key].iloc[index]) for key in ("row", "col"))
        return Window(row, col, self.size, self.size)

    def verify(self) -> None:
        """Raise ChipStoreError naming the first chip whose pixels are not those once written."""
        for index, expected in enumerate(self.table["sha256"]):
            if chip_digest(self.image(index), self.label(index)) != expected:
                raise ChipStoreError(
                    f"{self.path}: chip {self.table['id'].iloc[index]} was edited after it was "
                    "written (its SHA-256 differs); delete the store and run "
                    "`terrafine label SPEC` again"
                )

    def _image(self, index: int, part: tuple[slice, slice]) -> UInt16Array:
        return cast(UInt16Array, self._pixels(self.images, index, (index, slice(None), *part)))

    def _label(self, index: int, part: tuple[slice, slice]) -> UInt8Array:
        return cast(UInt8Array, self._pixels(self.labels, index, (index, *part)))

    def _pixels(self, array: zarr.Array[Any], index: int, where: Any) -> npt.NDArray[Any]:
        try:
            return np.asarray(array[where])
        except _DAMAGE as error:
            raise ChipStoreError(
                f"{self.path}: {array.basename} of chip {self.table['id'].iloc[index]} cannot be "
                f"read ({error}); the store is damaged, delete it and run `terrafine label SPEC` "
                "again"
            ) from error


def chip_digest(image_CHW: UInt16Array, label_HW: UInt8Array) -> str:
    """SHA-256 of a chip's pixels, image (little-endian, band by band) then label."""
    digest = hashlib.sha256(np.ascontiguousarray(image_CHW, "<u2").tobytes())
    digest.update(np.ascontiguousarray(label_HW, np.uint8).tobytes())
    return digest.hexdigest()


class ChipWriter:
    """Fills the arrays of a new store one chip after the other."""

    def __init__(self, folder: Path, *, capacity: int, bands: int, size: int) -> None:
        """``capacity``: the largest number of chips; :meth:`close` cuts away what stayed empty."""
        self._folder = folder
        self._count = 0
        root = zarr.create_group(folder)
        self._images = _create(root, "image", (capacity, bands, size, size), np.uint16)
        self._labels = _create(root, "label", (capacity, size, size), np.uint8)

    def append(self, image_CHW: UInt16Array, label_HW: UInt8Array) -> str:
        """Write one chip and return its digest."""
        self._images[self._count] = image_CHW
        self._labels[self._count] = label_HW
        self._count += 1
        return chip_digest(image_CHW, label_HW)

    def close(self, table: geopandas.GeoDataFrame, info: dict[str, Any]) -> None:
        """Write the table and, last of all, the attributes (those of :class:`StoreInfo`)."""
        for array in (self._images, self._labels):
            array.resize((self._count, *array.shape[1:]))
        table_file = self._folder / _TABLE
        table.to_parquet(table_file, index=False)
        whole = StoreInfo(chips=self._count, table_sha256=_file_digest(table_file), **info)
        attributes = whole.model_dump(mode="json", by_alias=True)
        zarr.open_group(self._folder, mode="r+").attrs.put(attributes)


def _create(
    root: zarr.Group, name: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> zarr.Array[Any]:
    """One shard per chip, so that a chip is one file and a crop reads a few chunks of it."""
    chip = (1, *shape[1:])
    chunk = (*chip[:-2], *(min(side, _CHUNK) for side in chip[-2:]))
    return root.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunk,
        shards=chip,
        compressors=ZstdCodec(level=3, checksum=True),
        fill_value=0,
        dimension_names=("chip", "band", "y", "x") if len(shape) == 4 else ("chip", "y", "x"),
        # An all-zero chip is written too: what is not there was never written.
        config={"write_empty_chunks": True},
    )


@contextmanager
def new_store(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` when all went well and disappears otherwise.

    An earlier chip store at ``path`` is replaced. ChipStoreError when something else is there, or
    when the folder cannot be written (no permission, disk full).
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.exists() and not (path / _TABLE).is_file():
            raise ChipStoreError(f"{path}: is there and is no chip store; choose another folder")
        if partial.exists():  # a killed run's
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        raise ChipStoreError(
            f"{path}: the chip store cannot be written to {path.parent} "
            f"({error.strerror or error}); free space there or choose another folder"
        ) from error
    finally:
        # rename took it away when all went well; an unreachable folder has nothing to remove
        shutil.rmtree(partial, ignore_errors=True)


def open_chips(path: Path) -> ChipStore:
    """Open a chip store; ChipStoreError when it is missing, incomplete, edited or of another kind.

    Pixels are checked by :meth:`ChipStore.verify` only, which reads them all.
    """
    if not (path / "zarr.json").is_file() or not (path / _TABLE).is_file():
        raise ChipStoreError(f"{path}: no chip store here; run `terrafine label SPEC` first")
    try:
        root = zarr.open_group(path, mode="r")
        info = StoreInfo.model_validate(dict(root.attrs))
        images, labels = root["image"], root["label"]
        table = geopandas.read_parquet(path / _TABLE)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ChipStoreError(
            f"{path}: not a chip store of this version: {'.'.join(map(str, problem['loc']))}: "
            f"{problem['msg']}; delete it and run `terrafine label SPEC` again"
        ) from error
    except (*_DAMAGE, ArrowException) as error:
        raise ChipStoreError(
            f"{path}: the chip store is damaged ({error}); delete it and run "
            "`terrafine label SPEC` again"
        ) from error
    assert isinstance(images, zarr.Array)
    assert isinstance(labels, zarr.Array)
    store = ChipStore(path, info, table, images, labels)
    _require_complete(store)
    return store


def _require_complete(store: ChipStore) -> None:
    remedy = "delete it and run `terrafine label SPEC` again"
    if _file_digest(store.path / _TABLE) != store.info.table_sha256:
        raise ChipStoreError(f"{store.path}: {_TABLE} was edited after it was written; {remedy}")
    image_shape = (len(store), store.bands, store.size, store.size)
    label_shape = (len(store), store.size, store.size)
    if store.images.shape != image_shape or store.labels.shape != label_shape:
        raise ChipStoreError(
            f"{store.path}: image {store.images.shape} and label {store.labels.shape} do not hold "
            f"the {len(store)} chips of the table; {remedy}"
        )
    for index in range(len(store)):
        for name, key in (("image", "0/0/0"), ("label", "0/0")):
            if not (store.path / name / "c" / str(index) / key).is_file():
                raise ChipStoreError(
                    f"{store.path}: incomplete: the {name} of chip "
                    f"{store.table['id'].iloc[index]} is not there; {remedy}"
                )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
