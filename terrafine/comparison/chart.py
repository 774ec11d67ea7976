"""A comparison as one picture: overall accuracy, and the difference to the first variant."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from terrafine.accuracy import Figure, Front
from terrafine.comparison.held_out import PRODUCT
from terrafine.comparison.measure import Comparison

_INCHES_PER_ROW = 0.42
_BLUE, _GREY = "#2a6f97", "#6c757d"


def chart_png(comparison: Comparison) -> bytes:
    """PNG bytes: dots with intervals, one line per variant, the label product as a dashed line."""
    from matplotlib.figure import Figure as Canvas  # slow to import, and only this needs it

    rows = [row for row in comparison.rows if row.report is not None]
    names = [row.variant for row in rows]
    canvas = Canvas(figsize=(10, 1.4 + _INCHES_PER_ROW * max(len(rows), 1)), dpi=150)
    left, right = canvas.subplots(1, 2, sharey=True)
    overall = [row.report.overall_accuracy for row in rows if row.report is not None]
    _dots(left, overall, _BLUE)
    product = comparison.product.overall_accuracy.value if comparison.product else None
    if product is not None:
        left.axvline(100 * product, color=_GREY, linestyle="--", linewidth=1, label=PRODUCT)
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    left.set_xlabel("overall accuracy, %")
    against = [row.against_first.difference if row.against_first else None for row in rows]
    _dots(right, against, _BLUE)
    right.axvline(0, color=_GREY, linewidth=1)
    right.set_xlabel(f"over {comparison.rows[0].variant}, points (paired)")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(max(len(names), 1) - 0.5, -0.5)
    for axes in (left, right):
        axes.grid(axis="x", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.tight_layout()
    picture = io.BytesIO()
    canvas.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def front_png(front: Front) -> bytes:
    """PNG bytes: overall accuracy against the time of inference, and the front that is left when
    every network that another beats in both is put aside; the one to choose is ringed."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 5), dpi=150)
    axes = canvas.subplots()
    best, chosen = front.best(), front.chosen()
    for place in front.places:
        figure, across = place.overall_accuracy, place.seconds_per_megapixel
        if figure.value is None:
            continue
        colour = _BLUE if place in best else _GREY
        if figure.low is not None and figure.high is not None:
            axes.plot([across, across], [100 * figure.low, 100 * figure.high], color=colour)
        axes.plot(across, 100 * figure.value, "o", color=colour)
        if place == chosen:
            axes.scatter(across, 100 * figure.value, s=180, facecolors="none", edgecolors=_BLUE)
        axes.annotate(
            place.network, (across, 100 * figure.value), (10, 4),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    kept = [(p.seconds_per_megapixel, p.overall_accuracy.value) for p in best]
    axes.step(
        [seconds for seconds, _ in kept],
        [100 * value for _, value in kept if value is not None],
        where="post",
        color=_BLUE,
        linewidth=1,
        alpha=0.5,
    )
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks("{x:.3g}")
    axes.set_xlabel(f"seconds per megapixel ({front.engines()})")
    axes.set_ylabel("overall accuracy, %")
    axes.set_title(front.verdict(), fontsize=9)
    axes.margins(x=0.2)
    axes.grid(linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.tight_layout()
    picture = io.BytesIO()
    canvas.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _dots(axes: Any, figures: Sequence[Figure | None], colour: str) -> None:
    for place, figure in enumerate(figures):
        if figure is None or figure.value is None:
            continue
        if figure.low is not None and figure.high is not None:
            axes.plot([100 * figure.low, 100 * figure.high], [place, place], color=colour)
        axes.plot(100 * figure.value, place, "o", color=colour)
