"""What is painted on: the kind of ground and the object it belongs to, pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from terrafine.landscape.kinds import number_of
from terrafine.landscape.noise import Float32Array, UInt32Array
from terrafine.legend import UInt8Array

BoolArray = npt.NDArray[np.bool_]


class Canvas:
    """``kind``: (H, W) uint8 kind numbers; ``thing``: (H, W) uint32, the same within an object."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.kind: UInt8Array = np.zeros(shape, np.uint8)
        self.thing: UInt32Array = np.zeros(shape, np.uint32)

    def paint(self, where: BoolArray, kind: str | UInt8Array, thing: int | UInt32Array) -> None:
        """Put a kind (by name, or by number for every pixel) and its objects where ``where``."""
        if isinstance(kind, str):
            self.kind[where] = number_of(kind)
        else:
            self.kind[where] = kind[where]
        self.thing[where] = np.broadcast_to(np.asarray(thing, np.uint32), where.shape)[where]


def pick(share: Float32Array, table: Mapping[str, float]) -> UInt8Array:
    """Kinds by their weights in ``table`` from uniform numbers."""
    weights = np.cumsum(np.array(list(table.values()), np.float64))
    numbers = np.array([number_of(name) for name in table], np.uint8)
    index = np.searchsorted(weights / weights[-1], share, side="right").clip(max=len(numbers) - 1)
    chosen: UInt8Array = numbers[index]
    return chosen
