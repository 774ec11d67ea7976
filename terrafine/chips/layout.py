"""How a chip store lies in its folder or bucket.

``image`` and ``label`` are ordinary Zarr v3 arrays of whole shards: eight chips each, in chunks of
256 x 256 pixels with all bands (measured, docs/adr). Slots of tiles that were not kept stay zero,
which as a label is "no class"; the table's ``position`` says which slots hold a chip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import BaseModel, ConfigDict, Field
from zarr.codecs import ZstdCodec
from zarr.storage import ObjectStore

from terrafine.errors import ChipStoreError
from terrafine.geometry import PixelGrid
from terrafine.legend import Legend
from terrafine.storage import Storage

CHIPS_PER_SHARD = 8
CHUNK = 256
TABLE = "chips.parquet"
SHARDS = "shards.json"
DTYPES: Mapping[str, np.dtype[Any]] = {"image": np.dtype("<u2"), "label": np.dtype("u1")}

# What zarr raises on metadata that is missing, cut off or changed.
DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError)


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
    """Attributes of the store's root group, written last of all.

    ``slots``: places in the arrays, one for every tile; ``chips``: those of them that hold a chip.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    version: Literal["terrafine-chips-2"] = Field("terrafine-chips-2", alias="schema")
    legend: Legend
    bands: tuple[str, ...]
    fill: int
    size: int
    slots: int
    chips: int
    zones: dict[str, ZoneGrid]
    scenes: tuple[str, ...]
    spec_sha256: str
    table_sha256: str
    shards_sha256: str


def array_shape(name: str, *, slots: int, bands: int, size: int) -> tuple[int, ...]:
    """Shape of the image or the label array."""
    return (slots, bands, size, size) if name == "image" else (slots, size, size)


def shard_name(name: str, group: int) -> str:
    """Object that holds the images or labels of a group."""
    return f"{name}/c.{group}" + ".0" * (3 if name == "image" else 2)


def create_arrays(storage: Storage, *, slots: int, bands: int, size: int) -> None:
    """Metadata of two empty arrays; equal arguments give equal bytes."""
    root = zarr.open_group(ObjectStore(storage.store), mode="a")
    for name, dtype in DTYPES.items():
        shape = array_shape(name, slots=slots, bands=bands, size=size)
        chunk = min(size, CHUNK)
        root.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(1, *shape[1:-2], chunk, chunk),
            shards=(CHIPS_PER_SHARD, *shape[1:]),
            # libzstd checks its checksum whenever a chunk is read
            compressors=ZstdCodec(level=3, checksum=True),
            fill_value=0,
            dimension_names=("chip", *(("band",) if name == "image" else ()), "y", "x"),
            chunk_key_encoding={"name": "default", "separator": "."},
        )


def open_arrays(root: zarr.Group) -> dict[str, zarr.Array[Any]]:
    """The arrays of a store's root group."""
    arrays = {}
    for name in DTYPES:
        array = root[name]
        assert isinstance(array, zarr.Array)
        # An all-zero chunk is written too: what is not there was never written.
        arrays[name] = array.with_config({"write_empty_chunks": True})
    return arrays


def require_arrays(
    storage: Storage, arrays: Iterable[tuple[str, zarr.Array[Any]]], info: StoreInfo
) -> None:
    """Raise ChipStoreError unless the arrays are laid out as :func:`create_arrays` does it."""
    for name, array in arrays:
        shape = array_shape(name, slots=info.slots, bands=len(info.bands), size=info.size)
        chunk = min(info.size, CHUNK)
        found = {
            "shape": (array.shape, shape),
            "dtype": (array.dtype, DTYPES[name]),
            "chunks": (array.chunks, (1, *shape[1:-2], chunk, chunk)),
            "shards": (array.shards, (CHIPS_PER_SHARD, *shape[1:])),
        }
        for what, (is_now, must_be) in found.items():
            if is_now != must_be:
                raise ChipStoreError(
                    f"{storage}: {what} of array {name} is {is_now}, {must_be} is needed for "
                    f"{info.chips} chips of {info.size} with {len(info.bands)} bands; "
                    "delete the store and run `terrafine label SPEC` again"
                )


def groups_of(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Groups that hold a chip, ascending."""
    return np.unique(positions // CHIPS_PER_SHARD)
