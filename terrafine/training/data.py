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

from terrafine.errors import TrainingError
from terrafine.legend import NO_CLASS, Legend, UInt8Array
from terrafine.training.loss import IGNORED

UInt16Array = npt.NDArray[np.uint16]
# (image_CHW uint16 in raw numbers, target_HW uint8: output index, 255 ignored)
Example = tuple[UInt16Array, UInt8Array]
# The same of several examples: (image_NCHW, target_NHW)
Batch = tuple[Tensor, Tensor]

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

    def name(self, index: int) -> str:
        """What people call chip ``index``, for messages."""
        ...


class Examples(Protocol):
    """Numbered examples for a network."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, position: int) -> Example:
        """The example at ``position``; TrainingError when its pixels cannot be used."""
        ...


def symmetry(image_HW: npt.NDArray[Any], which: int) -> npt.NDArray[Any]:
    """One of the eight symmetries of the square on the last two axes; 0 changes nothing."""
    turned = np.rot90(image_HW, which % 4, axes=(-2, -1))
    return turned[..., ::-1] if which >= 4 else turned


@dataclass(frozen=True)
class Crops:
    """Random crops of one epoch: every chip ``crops_per_chip`` times, in random order.

    Example ``position`` of epoch ``epoch`` is a pure function of (seed, epoch, position), so that
    neither the number of workers and loading processes nor a break changes anything.
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
        image, target = _example(self.source, self.legend, chip, row, col, self.crop)
        return symmetry(image, which), symmetry(target, which)


@dataclass(frozen=True)
class WholeChips:
    """Chips as they are, in the order given: for validation."""

    source: ChipSource
    indexes: npt.NDArray[np.int64]
    legend: Legend

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.indexes)

    def __getitem__(self, position: int) -> Example:
        """The whole chip at ``position``."""
        chip = int(self.indexes[position])
        return _example(self.source, self.legend, chip, 0, 0, self.source.size)


def stack(examples: Examples, positions: Sequence[int]) -> Batch:
    """The examples at ``positions`` as one batch."""
    images, targets = zip(*(examples[position] for position in positions), strict=True)
    # numpy: torch would start threads of its own in every process that loads
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))


def as_indexes(chips: Sequence[int]) -> npt.NDArray[np.int64]:
    """Chip numbers as an array."""
    return np.asarray(chips, dtype=np.int64).reshape(-1)


def named(source: ChipSource, index: int) -> str:
    """A chip by number and name."""
    return f"{index} ({source.name(index)})"


def _example(
    source: ChipSource, legend: Legend, chip: int, row: int, col: int, size: int
) -> Example:
    image, label = source.crop(chip, row, col, size)
    for what, array, dtype in (("image", image, np.uint16), ("label", label, np.uint8)):
        if array.dtype != dtype or array.shape[-2:] != (size, size):
            raise TrainingError(
                f"chip {named(source, chip)}: its {what} is {array.dtype} {array.shape}, not "
                f"{np.dtype(dtype)} of {size} x {size} pixels; build the chip store again"
            )
    target: UInt8Array = legend.index_table[label]
    # counting is several times faster than picking
    if np.count_nonzero(target == IGNORED) != np.count_nonzero(label == NO_CLASS):
        unknown = label[(target == IGNORED) & (label != NO_CLASS)]
        raise TrainingError(
            f"chip {named(source, chip)}: label code {unknown[0]} ({unknown.size} pixels) is no "
            f"class of legend {legend.name!r}, which has {list(legend.codes)} and 0 for none; "
            "build the chip store again with this legend"
        )
    return image, target
