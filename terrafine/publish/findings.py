"""What the report says in words: the verdict in one sentence, and what to distrust.

Every caution is derived from the numbers of this run, so that a reader is warned about this map
and not about maps in general.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from terrafine.accuracy import AccuracyReport, Figure, GateDecision, PairedComparison
from terrafine.legend import UNWRITTEN, UInt8Array

# Below these a figure of one class says little, or says that the class cannot be relied on.
FEW_SAMPLES = 50
WEAK_CLASS = 0.5
LOW_CONFIDENCE = 50

Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Verdict:
    """The report's first sentence: ``badge`` in a word, ``sentence``, and reasons of a refusal."""

    badge: str
    tone: Tone
    sentence: str
    reasons: tuple[str, ...] = ()


def verdict(
    gate: GateDecision | None,
    accuracy: AccuracyReport | None,
    product: AccuracyReport | None,
    difference: PairedComparison | None,
    *,
    has_map: bool,
) -> Verdict:
    """The outcome of the run in one sentence."""
    promoted = gate is not None and gate.passed
    found = _found("its map" if promoted else "the candidate", accuracy, product, difference)
    if gate is None:
        return Verdict("not judged", "neutral", f"No gate has judged this model. {_upper(found)}")
    if gate.passed:
        return Verdict("promoted", "good", f"The gate promoted this model: {found}")
    consequence = (
        "; the map below is shown for inspection only" if has_map else ", so no map was made"
    )
    return Verdict(
        "refused",
        "bad",
        f"The gate refused this model{consequence}. {_upper(found)}",
        gate.reasons,
    )


def cautions(
    accuracy: AccuracyReport | None,
    difference: PairedComparison | None,
    confidence_HW: UInt8Array | None,
    *,
    has_map: bool,
) -> list[str]:
    """What a user of this map should distrust, most general first."""
    out: list[str] = []
    if accuracy is None:
        out.append("No accuracy was measured: nothing here says how good the map is.")
    else:
        out.extend(_of_reference(accuracy))
        out.extend(_of_difference(difference))
        out.extend(_of_classes(accuracy))
    out.extend(_of_confidence(confidence_HW))
    if has_map:
        out.append(
            "Areas are counted pixels. They inherit the map's errors; for official statistics "
            "estimate areas from a probability sample (Olofsson et al. 2014)."
        )
    return out


def share(figure: Figure, decimals: int = 1) -> str:
    """``81.2 % (79.5 to 82.9)``, or "undefined"."""
    if figure.value is None:
        return "undefined"
    return f"{100 * figure.value:.{decimals}f} %{interval(figure, decimals)}"


def points(figure: Figure, decimals: int = 1) -> str:
    """A difference in percentage points with its sign: ``+3.1 (1.2 to 5.0)``."""
    if figure.value is None:
        return "undefined"
    return f"{100 * figure.value:+.{decimals}f}{interval(figure, decimals)}".replace("-", "−")


def interval(figure: Figure, decimals: int = 1) -> str:
    """`` (79.5 to 82.9)`` in percent, or nothing."""
    if figure.low is None or figure.high is None:
        return ""
    return f" ({100 * figure.low:.{decimals}f} to {100 * figure.high:.{decimals}f})"


def number(value: float) -> str:
    """12345 -> "12 345" with narrow spaces, which no locale misreads."""
    return f"{value:,.0f}".replace(",", "\u202f")


def _found(
    subject: str,
    accuracy: AccuracyReport | None,
    product: AccuracyReport | None,
    difference: PairedComparison | None,
) -> str:
    if accuracy is None or accuracy.overall_accuracy.value is None:
        return f"the accuracy of {subject} is not known."
    where = {
        "points": "is right at {} of the reference points",
        "raster": "agrees with the reference map on {} of the compared pixels",
    }[accuracy.kind]
    text = f"{subject} {where.format(f'{100 * accuracy.overall_accuracy.value:.1f} %')}"
    if difference is not None and difference.difference.value is not None:
        text += f", {_against_product(difference.difference)}"
    elif product is not None and product.overall_accuracy.value is not None:
        text += f"; the label product reaches {100 * product.overall_accuracy.value:.1f} %"
    return f"{text}."


def _against_product(difference: Figure) -> str:
    value = 100 * (difference.value or 0.0)
    if difference.low is not None and difference.low > 0:
        return f"{value:.1f} points more than the label product it was trained on"
    if difference.high is not None and difference.high < 0:
        return f"{-value:.1f} points less than the label product it was trained on"
    return "not measurably different from the label product it was trained on"


def _of_reference(accuracy: AccuracyReport) -> Iterator[str]:
    if accuracy.kind != "points":  # points are what accuracy should be measured at
        yield f"{accuracy.statement} Reference: {accuracy.reference_name}."
    if accuracy.unmapped:
        yield (
            f"{number(accuracy.unmapped)} of {number(accuracy.reference_samples)} reference "
            f"samples ({100 * accuracy.unmapped_share:.1f} %) have no class in the map; no figure "
            "counts them."
        )


def _of_difference(difference: PairedComparison | None) -> Iterator[str]:
    if difference is None:
        yield "Map and label product were not compared at the same samples."
        return
    low, high = difference.difference.low, difference.difference.high
    if low is None or high is None:
        yield "The difference between map and product has no interval: too few independent units."
    elif low <= 0 <= high:
        yield (
            "The map is not shown to differ from the label product in overall accuracy: "
            f"{points(difference.difference)} points, an interval that holds 0."
        )


def _of_classes(accuracy: AccuracyReport) -> Iterator[str]:
    seen = [row for row in accuracy.classes if row.reference_samples or row.mapped_samples]
    few = [row for row in seen if row.reference_samples < FEW_SAMPLES]
    if few:
        listed = _listed([f"{row.name} ({row.reference_samples})" for row in few])
        yield f"Too few reference samples to say much about {listed}."
    unseen = [row.name for row in accuracy.classes if row not in seen]
    if unseen:
        yield f"Neither map nor reference shows {_listed(unseen)} at any sample: untested here."
    wrong = [
        f"{row.name} ({100 * row.users_accuracy.value:.0f} % right)"
        for row in seen
        if row.users_accuracy.value is not None and row.users_accuracy.value < WEAK_CLASS
    ]
    if wrong:
        yield f"More often wrong than right where the map says {_listed(wrong)}."
    missed = [
        f"{row.name} ({100 * row.producers_accuracy.value:.0f} % found)"
        for row in seen
        if row.producers_accuracy.value is not None and row.producers_accuracy.value < WEAK_CLASS
    ]
    if missed:
        yield f"More than half is missed of {_listed(missed)}."


def _of_confidence(confidence_HW: UInt8Array | None) -> Iterator[str]:
    if confidence_HW is None:
        return
    known = confidence_HW[confidence_HW != UNWRITTEN]
    if known.size:
        low = float(np.mean(known < LOW_CONFIDENCE))
        yield (
            "Confidence is the model's own probability of the class it chose, not a measured "
            f"accuracy; it lies below {LOW_CONFIDENCE} % on {100 * low:.1f} % of the mapped pixels."
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
