"""Crops of chips as torch batches; what each is depends on its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from terrafine.legend import Legend, UInt8Array

UInt16Array = npt.NDArray[np.uint16]
# (image_CHW uint16 in raw numbers, target_HW uint8: output index, 255 ignored)
Example = tuple[Tensor, Tensor]

SYMMETRIES = 8


class ChipSource(Protocol):
    """Where chips come from: a chip store, or arrays in memory."""

    @property
    def size(self) -> int:
        """Pixels a side of every chip."""
        ...

    def __len__(self) -> int:
        """Number of chips."""
        ...

    def crop(self, index: int, row: int, col: int, size: int) -> tuple[UInt16Array, UInt8Array]:
        """``size`` x ``size`` pixels of chip ``index`` from (row, col): image_CHW, label_HW."""
        ...


def symmetry(image_HW: npt.NDArray[Any], which: int) -> npt.NDArray[Any]:
    """One of the eight symmetries of the square on the last two axes; 0 changes nothing."""
    turned = np.rot90(image_HW, which % 4, axes=(-2, -1))
    return turned[..., ::-1] if which >= 4 else turned


@dataclass(frozen=True)
class Crops(Dataset[Example]):
    """Random crops of one epoch: every chip ``crops_per_chip`` times, in random order.

    Example ``position`` of epoch ``epoch`` is a pure function of (seed, epoch, position), so that
    neither the number of loading processes nor a break between epochs changes anything.
    """

    source: ChipSource
    indexes: npt.NDArray[np.int64]
    legend: Legend
    crop: int
    crops_per_chip: int
    flips_and_rotations: bool
    seed: int
    epoch: int

    def __len__(self) -> int:
        """Number of crops in the epoch."""
        return len(self.indexes) * self.crops_per_chip

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        """Chip of every position."""
        rng = np.random.default_rng((self.seed, self.epoch))
        return rng.permutation(np.repeat(self.indexes, self.crops_per_chip))

    def place(self, position: int) -> tuple[int, int, int, int]:
        """(chip, row, col, symmetry) of the crop at ``position``."""
        rng = np.random.default_rng((self.seed, self.epoch, position))
        chip = int(self._order[position])
        row, col = (int(n) for n in rng.integers(0, self.source.size - self.crop, 2, endpoint=True))
        which = int(rng.integers(SYMMETRIES)) if self.flips_and_rotations else 0
        return chip, row, col, which

    def __getitem__(self, position: int) -> Example:
        """The crop at ``position``, turned and mirrored at random."""
        chip, row, col, which = self.place(position)
        image, label = self.source.crop(chip, row, col, self.crop)
        return _example(symmetry(image, which), symmetry(label, which), self.legend)


@dataclass(frozen=True)
class WholeChips(Dataset[Example]):
    """Chips as they are, in the order given: for validation."""

    source: ChipSource
    indexes: npt.NDArray[np.int64]
    legend: Legend

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.indexes)

    def __getitem__(self, position: int) -> Example:
        """The whole chip at ``position``."""
        image, label = self.source.crop(int(self.indexes[position]), 0, 0, self.source.size)
        return _example(image, label, self.legend)


def batches(
    dataset: Dataset[Example], *, batch: int, workers: int, pin_memory: bool
) -> DataLoader[Example]:
    """Batches in the dataset's order; the last one may be smaller and is kept."""
    return DataLoader(
        dataset, batch_size=batch, shuffle=False, num_workers=workers, pin_memory=pin_memory
    )


def as_indexes(chips: Sequence[int]) -> npt.NDArray[np.int64]:
    """Chip numbers as an array."""
    return np.asarray(chips, dtype=np.int64).reshape(-1)


def _example(image: UInt16Array, label: UInt8Array, legend: Legend) -> Example:
    target = legend.index_table[label]
    return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(
        np.ascontiguousarray(target)
    )
