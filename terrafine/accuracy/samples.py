"""Reference samples: what the map says and what the reference says at the same places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from terrafine.accuracy.confusion import ConfusionMatrix, Int64Array
from terrafine.errors import AccuracyError
from terrafine.legend import NO_CLASS, UNWRITTEN, UInt8Array


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one map, or of two maps at the same places. All arrays have shape (n,).

    ``mapped`` and ``reference`` are legend codes. A reference of 0 or 255 is no sample; a map
    of 0 or 255 at a sample is "unmapped". ``unit``: number of the unit that a resample draws or
    leaves as a whole, None when every sample is a unit of its own. ``other``: a second map.
    ``count``: how many samples an entry stands for, None for one each; a raster reference is
    millions of pixels but few different entries.
    """

    mapped: UInt8Array
    reference: UInt8Array
    unit: Int64Array | None = None
    other: UInt8Array | None = None
    count: Int64Array | None = None

    def __post_init__(self) -> None:
        for name in ("reference", "unit", "other", "count"):
            values = getattr(self, name)
            if values is not None and values.shape != (self.mapped.size,):
                raise AccuracyError(
                    f"samples: {name} has shape {values.shape}, the map {self.mapped.shape}; "
                    "both must have one entry per sample"
                )

    @classmethod
    def from_matrix(cls, matrix: ConfusionMatrix) -> Samples:
        """Independent samples that give ``matrix``, for matrices that others published."""
        codes = np.array(matrix.codes, np.uint8)
        rows, columns = np.nonzero(matrix.counts)
        return cls(codes[rows], codes[columns], count=matrix.counts[rows, columns])

    @classmethod
    def concatenate(cls, parts: Sequence[Samples]) -> Samples:
        """All samples of several places, such as UTM zones; units of two parts stay apart."""
        if not parts:
            empty = np.zeros(0, np.uint8)
            return cls(empty, empty)
        for name in ("unit", "other"):
            if len({getattr(part, name) is None for part in parts}) > 1:
                raise AccuracyError(
                    f"samples with and without {name!r} cannot be joined; "
                    "sample every zone in the same way"
                )
        return cls(
            np.concatenate([part.mapped for part in parts]),
            np.concatenate([part.reference for part in parts]),
            _joined_units(parts),
            None
            if parts[0].other is None
            else np.concatenate([part.other for part in parts if part.other is not None]),
            np.concatenate([part.counts for part in parts]),
        )

    @property
    def counts(self) -> Int64Array:
        """(n,) how many samples every entry stands for."""
        return np.ones(self.mapped.size, np.int64) if self.count is None else self.count

    @property
    def size(self) -> int:
        """Number of samples, unmapped ones included."""
        return int(self.counts[is_class(self.reference)].sum())

    def of_other(self) -> Samples:
        """The second map alone, at the same places."""
        if self.other is None:
            raise AccuracyError("these samples hold no second map; sample with read_other")
        return replace(self, mapped=self.other, other=None)


def is_class(codes: UInt8Array) -> npt.NDArray[np.bool_]:
    """Where a code is a class: neither 0 ("looked at, no class") nor 255 ("never written")."""
    classes: npt.NDArray[np.bool_] = (codes != NO_CLASS) & (codes != UNWRITTEN)
    return classes


def _joined_units(parts: Sequence[Samples]) -> Int64Array | None:
    """Units numbered anew, so that equal numbers of two parts do not become one unit."""
    numbered, first = [], 0
    for part in parts:
        if part.unit is None:
            return None
        found, inverse = np.unique(part.unit, return_inverse=True)
        numbered.append(inverse.astype(np.int64) + first)
        first += found.size
    return np.concatenate(numbered)
