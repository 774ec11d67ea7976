"""Estimates with intervals of one map, and paired tests of two maps on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict
from scipy.special import bdtr

from terrafine.accuracy.bootstrap import percentile_interval, resample, stack_units
from terrafine.accuracy.confusion import (
    CLASS_FIGURES,
    OVERALL_FIGURES,
    ConfusionMatrix,
    FloatArray,
    Int64Array,
    class_indexes,
)
from terrafine.accuracy.samples import Samples
from terrafine.errors import AccuracyError


def _nan_to_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


# What is undefined is None in Python and null in JSON, never NaN, which JSON does not have.
Number = Annotated[float | None, BeforeValidator(_nan_to_none)]


class Figure(BaseModel):
    """A figure with its interval; None where it is undefined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Number
    low: Number = None
    high: Number = None

    def percent(self) -> str:
        """``81.24 (79.48 to 82.94)``."""
        return self._text(lambda x: f"{100 * x:.2f}")

    def plain(self) -> str:
        """``0.764 (0.742 to 0.785)``."""
        return self._text(lambda x: f"{x:.3f}")

    def points(self) -> str:
        """``+1.62 (+1.44 to +1.79)``, of a difference of shares."""
        return self._text(lambda x: f"{100 * x:+.2f}")

    def _text(self, write: Callable[[float], str]) -> str:
        if self.value is None:
            return "undefined"
        if self.low is None or self.high is None:
            return write(self.value)
        return f"{write(self.value)} ({write(self.low)} to {write(self.high)})"


@dataclass(frozen=True, eq=False)
class Estimate:
    """Everything that samples say about one map.

    ``figures``: by the names of OVERALL_FIGURES. ``class_figures``: by the names of
    CLASS_FIGURES, one Figure per class in legend order. ``units``: resampled units.
    """

    matrix: ConfusionMatrix
    unmapped: int
    units: int
    figures: dict[str, Figure]
    class_figures: dict[str, tuple[Figure, ...]]


class PairedComparison(BaseModel):
    """Two maps on the same samples; ``difference`` is OA(first) - OA(second).

    Only the ``samples`` where both maps have a class are compared, of ``reference_samples`` in
    all. ``units_for_first`` / ``_second``: units in which that map is right more often;
    ``p_value``: the two-sided mid-p sign test between them, which is McNemar's mid-p test where
    every sample is a unit of its own (Fagerland, Lydersen, Laake 2013).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: str
    second: str
    reference_samples: int
    samples: int
    units: int
    difference: Figure
    only_first_right: int
    only_second_right: int
    units_for_first: int
    units_for_second: int
    p_value: Number
    resamples: int
    confidence: float


def estimate(
    samples: Samples,
    codes: tuple[int, ...],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Confusion matrix of ``samples.mapped`` and every figure with its percentile interval.

    Units are taken to be independent of each other. A resample in which a figure is undefined is
    left out of that figure's interval; with fewer than two units there is no interval. Where a
    proportion is exactly 0 or 1 a bootstrap has no spread and would claim certainty: its open end
    is then the exact binomial one (Clopper and Pearson 1934) with units as trials. The same seed
    gives the same intervals.
    """
    rows = class_indexes(samples.mapped, codes, what="the map")
    columns = class_indexes(samples.reference, codes, what="the reference")
    used, size = (rows >= 0) & (columns >= 0), len(codes)
    stack = stack_units(samples, used, rows * size + columns, size * size)
    matrix = ConfusionMatrix(stack.total().reshape(size, size), codes)
    drawn = resample(stack, resamples, seed).reshape(-1, size, size)

    def figure(name: str, values: FloatArray, resampled: FloatArray, k: int | None) -> Figure:
        value = float(values if k is None else values[k])
        drawn_values = resampled if k is None else resampled[:, k]
        low, high = percentile_interval(drawn_values, confidence, stack.units)
        shared = _denominator(name, k, size)
        if shared is not None and stack.units > 1 and value in (0.0, 1.0):
            low, high = _exact_interval(name, value, stack.units_with(shared), 1 - confidence)
        return Figure(value=value, low=low, high=high)

    return Estimate(
        matrix=matrix,
        unmapped=int(samples.counts[(columns >= 0) & (rows < 0)].sum()),
        units=stack.units,
        figures={
            name: figure(name, f(matrix.counts), f(drawn), None)
            for name, f in OVERALL_FIGURES.items()
        },
        class_figures={
            name: tuple(figure(name, f(matrix.counts), f(drawn), k) for k in range(size))
            for name, f in CLASS_FIGURES.items()
        },
    )


def compare(
    samples: Samples,
    codes: tuple[int, ...],
    *,
    first: str,
    second: str,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Paired comparison of ``samples.mapped`` (first) with ``samples.other`` (second)."""
    if samples.other is None:
        raise AccuracyError(
            f"{first} and {second} cannot be compared: the samples hold no second map; "
            "sample with read_other"
        )
    mapped = class_indexes(samples.mapped, codes, what=first)
    other = class_indexes(samples.other, codes, what=second)
    reference = class_indexes(samples.reference, codes, what="the reference")
    both = (mapped >= 0) & (other >= 0) & (reference >= 0)
    # 0: only the second map is right, 1: both or neither, 2: only the first
    outcome = (mapped == reference).astype(np.int64) - (other == reference) + 1
    stack = stack_units(samples, both, outcome, 3)
    worse, _, better = (int(n) for n in stack.total())
    compared = int(samples.counts[both].sum())
    drawn = resample(stack, resamples, seed)
    with np.errstate(invalid="ignore"):
        differences = (drawn[:, 2] - drawn[:, 0]) / drawn.sum(1)
    low, high = percentile_interval(differences, confidence, stack.units)
    balance = stack.cells @ np.array([-1, 0, 1])
    for_first, for_second = (int(stack.multiplicity[s].sum()) for s in (balance > 0, balance < 0))
    return PairedComparison(
        first=first,
        second=second,
        reference_samples=samples.size,
        samples=compared,
        units=stack.units,
        difference=Figure(
            value=(better - worse) / compared if compared else None, low=low, high=high
        ),
        only_first_right=better,
        only_second_right=worse,
        units_for_first=for_first,
        units_for_second=for_second,
        p_value=mcnemar_mid_p(for_first, for_second) if compared else None,
        resamples=resamples,
        confidence=confidence,
    )


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """Two-sided mid-p value of McNemar's test from the two discordant counts.

    Source: Fagerland, Lydersen and Laake 2013, BMC Med. Res. Methodol. 13:91, equation for the
    mid-p test and its supplement for equal counts. 1.0 without any discordant pair.
    """
    fewer, discordant = min(only_first, only_second), only_first + only_second
    if not discordant:
        return 1.0
    up_to = float(bdtr(fewer, discordant, 0.5))
    below = float(bdtr(fewer - 1, discordant, 0.5)) if fewer else 0.0
    if only_first == only_second:
        return 1 - (up_to - below) / 2
    return up_to + below


def _denominator(name: str, k: int | None, size: int) -> Int64Array | None:
    """Cells of the matrix over which a figure is a share; None when it is no single share."""
    grid = np.arange(size * size, dtype=np.int64).reshape(size, size)
    row_and_column = None if k is None else np.union1d(grid[k], grid[:, k])
    cells: dict[str, Int64Array | None] = {
        "overall_accuracy": grid.ravel(),
        "users_accuracy": None if k is None else grid[k],
        "producers_accuracy": None if k is None else grid[:, k],
        "f1": row_and_column,
        "iou": row_and_column,
    }
    return cells.get(name)


def _exact_interval(name: str, value: float, trials: int, alpha: float) -> tuple[float, float]:
    """Interval of a share of exactly 0 or 1 in ``trials`` independent units."""
    spread = 1 - (alpha / 2) ** (1 / trials)
    end = spread if value == 0 else 1 - spread
    end = 2 * end / (1 + end) if name == "f1" else end  # F1 = 2 IoU / (1 + IoU)
    return (0.0, end) if value == 0 else (end, 1.0)
