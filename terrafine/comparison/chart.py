"""A comparison as one picture: overall accuracy, and the difference to the first variant."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from terrafine.accuracy import Figure
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
    left.set_ylim(len(names) - 0.5, -0.5)
    for axes in (left, right):
        axes.grid(axis="x", linewidth=0.4)
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
