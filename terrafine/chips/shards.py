"""Reading squares out of the store's shards with few requests and little memory.

zarr-python fetches the chunks of a shard one after the other: some twenty round trips for a crop,
and the shard's index anew each time. Here the index is remembered and all chunks of a crop are
fetched at once, runs of neighbours as one request. The bytes are those zarr reads (a test).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import Zstd

from terrafine.chips.layout import CHIPS_PER_SHARD, CHUNK, DTYPES, shard_name
from terrafine.storage import Storage

# Bytes of shard indexes kept per process: the 25 500 shards of 102 000 chips of 1024 (Dong et al.
# 2020) have 52 MB of them. What does not fit is fetched again.
_REMEMBERED = 64 * 2**20
_EMPTY = np.uint64(2**64 - 1)


class DamagedShardError(ValueError):
    """A shard does not hold what its index says."""


@dataclass
class ShardReader:
    """Squares of chips by the slot they lie in. ``shards``: bytes of every shard object."""

    storage: Storage
    bands: int
    size: int
    shards: Mapping[str, int]
    _indexes: dict[str, npt.NDArray[np.uint64]] = field(default_factory=dict)

    def read(self, name: str, slot: int, rows: slice, cols: slice) -> npt.NDArray[Any]:
        """``image`` (C, H, W) uint16 or ``label`` (H, W) uint8 of a part of the chip in a slot.

        StorageError when the shard cannot be read, DamagedShardError (or what libzstd raises:
        RuntimeError, ValueError) when it is not what was written.
        """
        chunk = min(self.size, CHUNK)
        bands = self.bands if name == "image" else 1
        out_CHW = np.empty((bands, rows.stop - rows.start, cols.stop - cols.start), DTYPES[name])
        for (row, col), data in self.chunks(name, slot, rows, cols).items():
            tile_CHW = np.frombuffer(Zstd().decode(data), DTYPES[name])
            if tile_CHW.size != bands * chunk * chunk:
                raise DamagedShardError(f"a chunk holds {tile_CHW.size} numbers")
            down, across = _overlap(row * chunk, chunk, rows), _overlap(col * chunk, chunk, cols)
            out_CHW[:, down.there, across.there] = tile_CHW.reshape(bands, chunk, chunk)[
                :, down.here, across.here
            ]
        image_CHW: npt.NDArray[Any] = out_CHW if name == "image" else out_CHW[0]
        return image_CHW

    def chunks(
        self, name: str, slot: int, rows: slice, cols: slice
    ) -> dict[tuple[int, int], memoryview]:
        """Compressed chunks that a part of a chip touches, by chunk row and column."""
        chunk = min(self.size, CHUNK)
        places = [
            (row, col)
            for row in range(rows.start // chunk, -(-rows.stop // chunk))
            for col in range(cols.start // chunk, -(-cols.stop // chunk))
        ]
        shard = shard_name(name, slot // CHIPS_PER_SHARD)
        index = self.index(shard)[slot % CHIPS_PER_SHARD]
        parts = [(int(index[place][0]), int(index[place][1])) for place in places]
        if any(start == _EMPTY for start, _ in parts):
            raise DamagedShardError(f"{shard} lacks a chunk")
        return dict(zip(places, self.storage.ranges(shard, parts), strict=True))

    def index(self, shard: str) -> npt.NDArray[np.uint64]:
        """(slots, chunk rows, chunk columns, 2): first byte and number of bytes of every chunk."""
        found = self._indexes.get(shard)
        if found is not None:
            return found
        side = -(-self.size // CHUNK)
        length = CHIPS_PER_SHARD * side * side * 16 + 4
        (data,) = self.storage.ranges(shard, [(self.shards[shard] - length, length)])
        checked = CRC32C(location="end").decode(data)
        numbers: npt.NDArray[np.uint64] = np.frombuffer(checked, "<u8")
        index = numbers.reshape(CHIPS_PER_SHARD, side, side, 2)
        if (len(self._indexes) + 1) * index.nbytes <= _REMEMBERED:
            self._indexes[shard] = index
        return index

    def __getstate__(self) -> dict[str, Any]:
        """What is remembered does not travel to other processes."""
        return {**self.__dict__, "_indexes": {}}


class _Overlap(NamedTuple):
    """What a chunk and a crop have in common, counted from the one's and the other's start."""

    here: slice
    there: slice


def _overlap(start: int, length: int, part: slice) -> _Overlap:
    first, stop = max(start, part.start), min(start + length, part.stop)
    return _Overlap(
        slice(first - start, stop - start), slice(first - part.start, stop - part.start)
    )
