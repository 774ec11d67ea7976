"""Confusion matrices and the figures of accuracy read off them.

Everywhere rows are the mapped class and columns the reference class, as in Tables 2 and 3 of
Dong et al. 2020 (scikit-learn's ``confusion_matrix`` is the transpose). The functions take whole
stacks of matrices, shape (..., K, K), because the bootstrap needs a thousand at once.

What is undefined is NaN, never 0: the user's accuracy of a class that was never mapped, the
producer's accuracy of one absent from the reference, F1 and IoU of one absent from both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from terrafine.errors import AccuracyError
from terrafine.legend import NO_CLASS, UNWRITTEN, UInt8Array

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Counts = npt.NDArray[Any]

# Over which classes a macro mean runs.
ClassSet = Literal["occurring", "reference"]

_NO_CLASS_INDEX = -1
_UNKNOWN_INDEX = -2


def overall_accuracy(counts: Counts) -> FloatArray:
    """Share of samples mapped as their reference class (OA): (..., K, K) -> (...)."""
    return _ratio(_diagonal(counts).sum(-1), _floats(counts).sum((-1, -2)))


def kappa(counts: Counts) -> FloatArray:
    """Cohen's kappa: (..., K, K) -> (...); NaN where chance alone would agree everywhere."""
    floats = _floats(counts)
    total = floats.sum((-1, -2))
    observed = _ratio(_diagonal(counts).sum(-1), total)
    rows, columns = (_ratio(floats.sum(axis), total[..., None]) for axis in (-1, -2))
    chance = (rows * columns).sum(-1)
    return _ratio(observed - chance, 1 - chance)


def users_accuracy(counts: Counts) -> FloatArray:
    """Per mapped class the share that is right (UA, precision): (..., K, K) -> (..., K)."""
    return _ratio(_diagonal(counts), _floats(counts).sum(-1))


def producers_accuracy(counts: Counts) -> FloatArray:
    """Per reference class the share that was found (PA, recall): (..., K, K) -> (..., K)."""
    return _ratio(_diagonal(counts), _floats(counts).sum(-2))


def f1(counts: Counts) -> FloatArray:
    """Harmonic mean of user's and producer's accuracy: (..., K, K) -> (..., K)."""
    floats = _floats(counts)
    return _ratio(2 * _diagonal(counts), floats.sum(-1) + floats.sum(-2))


def iou(counts: Counts) -> FloatArray:
    """Intersection over union of map and reference (Jaccard): (..., K, K) -> (..., K)."""
    floats, diagonal = _floats(counts), _diagonal(counts)
    return _ratio(diagonal, floats.sum(-1) + floats.sum(-2) - diagonal)


def class_mean(
    figure: Callable[[Counts], FloatArray], classes: ClassSet, counts: Counts
) -> FloatArray:
    """Macro mean of a per-class figure: (..., K, K) -> (...).

    ``classes``: "occurring" runs over the classes that occur in the map or the reference,
    "reference" over those that occur in the reference. Either way a class whose figure is
    undefined is left out of the mean.
    """
    values = figure(counts)
    counted = ~np.isnan(values)
    if classes == "reference":
        counted &= _floats(counts).sum(-2) > 0
    return _ratio(np.where(counted, values, 0).sum(-1), counted.sum(-1))


CLASS_FIGURES: Final[Mapping[str, Callable[[Counts], FloatArray]]] = {
    "users_accuracy": users_accuracy,
    "producers_accuracy": producers_accuracy,
    "f1": f1,
    "iou": iou,
}

OVERALL_FIGURES: Final[Mapping[str, Callable[[Counts], FloatArray]]] = {
    "overall_accuracy": overall_accuracy,
    "kappa": kappa,
    **{f"mean_{n}": partial(class_mean, f, "occurring") for n, f in CLASS_FIGURES.items()},
    **{
        f"mean_{n}_of_reference_classes": partial(class_mean, f, "reference")
        for n, f in CLASS_FIGURES.items()
    },
}


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """``counts`` (K, K) int64, rows mapped, columns reference, in the order of ``codes`` (K)."""

    counts: Int64Array
    codes: tuple[int, ...]

    def __post_init__(self) -> None:
        size = len(self.codes)
        if self.counts.shape != (size, size):
            raise AccuracyError(
                f"a confusion matrix of shape {self.counts.shape} does not fit {size} classes; "
                "it needs one row and one column per class of the legend"
            )
        if not np.issubdtype(self.counts.dtype, np.integer) or (self.counts < 0).any():
            raise AccuracyError("a confusion matrix holds whole numbers of samples, none below 0")

    @classmethod
    def from_codes(
        cls, mapped: UInt8Array, reference: UInt8Array, codes: Sequence[int]
    ) -> ConfusionMatrix:
        """Count pairs of legend codes, two arrays of one shape.

        Pairs in which either side is no class (0 or 255) are left out. AccuracyError on a code
        that is not in ``codes``.
        """
        rows = class_indexes(mapped, codes, what="the map").ravel()
        columns = class_indexes(reference, codes, what="the reference").ravel()
        both, size = (rows >= 0) & (columns >= 0), len(codes)
        cells = np.bincount(rows[both] * size + columns[both], minlength=size * size)
        return cls(cells.reshape(size, size).astype(np.int64), tuple(codes))

    @property
    def total(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    @property
    def mapped_totals(self) -> Int64Array:
        """(K,) samples mapped as each class (the rows' sums)."""
        totals: Int64Array = self.counts.sum(1)
        return totals

    @property
    def reference_totals(self) -> Int64Array:
        """(K,) reference samples of each class (the columns' sums)."""
        totals: Int64Array = self.counts.sum(0)
        return totals

    @property
    def overall_accuracy(self) -> float:
        """Share of right samples."""
        return float(overall_accuracy(self.counts))

    @property
    def kappa(self) -> float:
        """Cohen's kappa."""
        return float(kappa(self.counts))

    @property
    def users_accuracy(self) -> FloatArray:
        """(K,) UA; NaN for a class never mapped."""
        return users_accuracy(self.counts)

    @property
    def producers_accuracy(self) -> FloatArray:
        """(K,) PA; NaN for a class absent from the reference."""
        return producers_accuracy(self.counts)

    @property
    def f1(self) -> FloatArray:
        """(K,) F1; NaN for a class absent from both."""
        return f1(self.counts)

    @property
    def iou(self) -> FloatArray:
        """(K,) intersection over union; NaN for a class absent from both."""
        return iou(self.counts)

    def overall(self, name: str) -> float:
        """Any figure of :data:`OVERALL_FIGURES`, by name; macro means say their denominator."""
        return float(OVERALL_FIGURES[name](self.counts))


def class_indexes(values: UInt8Array, codes: Sequence[int], *, what: str) -> Int64Array:
    """Position in ``codes`` of every value, -1 where it is no class (0 or 255).

    AccuracyError names a code that belongs to another legend; ``what`` says whose it is.
    """
    table = np.full(256, _UNKNOWN_INDEX, np.int64)
    table[[NO_CLASS, UNWRITTEN]] = _NO_CLASS_INDEX
    table[list(codes)] = np.arange(len(codes))
    indexes: Int64Array = table[values]
    unknown = indexes == _UNKNOWN_INDEX
    if unknown.any():
        found = sorted({int(code) for code in np.unique(values[unknown])})
        raise AccuracyError(
            f"{what} holds codes {found[:8]}, which are no classes of the legend (it has "
            f"{list(codes)}); compare maps and references of one legend, or name a crosswalk"
        )
    return indexes


def _floats(counts: Counts) -> FloatArray:
    # float64 also for whole numbers: kappa multiplies sums of national maps
    return np.asarray(counts, np.float64)


def _diagonal(counts: Counts) -> FloatArray:
    return np.diagonal(_floats(counts), axis1=-2, axis2=-1)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> FloatArray:
    """``part / whole``, NaN where ``whole`` is 0."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(part, np.float64), np.asarray(whole, np.float64)
    )
    out = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out
