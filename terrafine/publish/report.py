"""report.html: one self-contained page: what was made, where, how good it is, what to distrust.

The page asks for nothing from any server (its content security policy forbids it), works from a
file, and stays below 6 MB: pictures that would not fit are shown at half the resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from terrafine.accuracy import AccuracyReport, Figure, Front, GateDecision, PairedComparison
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend, UInt8Array
from terrafine.pruning import PruningRecord
from terrafine.publish.charts import (
    ClassRow,
    Estimated,
    FrontPlace,
    Series,
    front_chart,
    histogram,
    interval_chart,
    line_chart,
    percent,
    plain,
)
from terrafine.publish.figures import hide_where_unmapped, valid_pixels
from terrafine.publish.findings import cautions, interval, number, points, share, verdict
from terrafine.publish.geography import lon_lat, pixel_area_km2, pixel_width_metres, unit_name
from terrafine.publish.panels import Renderer, View, ZoomView, fit, script_data

# Bytes of base64 for the panels; zooms, tables and scripts have the rest of the 6 MB.
PANEL_BUDGET = 4_800_000

# Up to so many classes the page's legend lists also those that do not occur.
_SHORT_LEGEND = 9

EpochRow = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything the report shows, as plain values.

    ``view``: the panels' arrays over ``view.window`` (see :class:`View`). ``bands``: band names.
    ``class_pixels``: class code -> pixels of the whole map at full resolution, None without a map.
    ``accuracy``, ``product_accuracy``: of the map and of the label product against the same
    reference; ``difference``: map (first) with product (second). Histories hold one mapping per
    epoch: epoch, learning_rate, train_loss, validation_loss, validation_agreement, seconds.
    ``pruning``: what was taken from the trained network, None where nothing was.
    ``front``: the search that the network was chosen by, ``model``: digest of the one that mapped.
    ``agreement``: (n,) share 0..1 per training chip, against ``agreement_threshold``.
    ``label_confusion``: (K, K) shares that the loss took into account, row = true class, column =
    what the product says, "estimated" or "published".
    ``provenance``: nested mappings and lists of plain values, shown as they are.
    """

    title: str
    created: datetime
    legend: Legend
    grid: PixelGrid
    view: View
    bands: tuple[str, ...]
    zooms: tuple[ZoomView, ...] = ()
    class_pixels: Mapping[int, int] | None = None
    accuracy: AccuracyReport | None = None
    product_accuracy: AccuracyReport | None = None
    difference: PairedComparison | None = None
    gate: GateDecision | None = None
    preliminary_history: Sequence[EpochRow] = ()
    history: Sequence[EpochRow] = ()
    pruning: PruningRecord | None = None
    front: Front | None = None
    model: str = ""
    agreement: npt.NDArray[np.float64] | None = None
    agreement_threshold: float = 0.2
    label_confusion: Sequence[Sequence[float]] | None = None
    label_confusion_source: str = ""
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spec_text: str = ""
    reference_title: str = "Reference"


def render_report(data: ReportData) -> str:
    """The whole page as HTML text."""
    renderer = Renderer.of(data.view, data.bands, data.legend, data.reference_title)
    view, panels = fit(renderer, data.view, PANEL_BUDGET)
    zooms = [zoom.zoom for zoom in data.zooms]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            view=view,
            created=data.created.astimezone(UTC).strftime("%-d %B %Y, %H:%M UTC"),
            verdict=verdict(
                data.gate,
                data.accuracy,
                data.product_accuracy,
                data.difference,
                has_map=data.view.map_HW is not None,
            ),
            cautions=cautions(
                data.accuracy,
                data.difference,
                _confidence(data.view),
                has_map=data.view.map_HW is not None,
            ),
            panels=panels,
            script=script_data(renderer, view, panels, zooms, data.grid),
            place=_place(data.grid, data.view.window),
            areas=_areas(data),
            shares=_shares(data),
            zooms=_zooms(data, renderer),
            matrices=_matrices(data),
            classes=_class_rows(data),
            charts=_charts(data),
            kept=_kept(data),
        )
    )


def _confidence(view: View) -> UInt8Array | None:
    if view.confidence_HW is None or view.map_HW is None:
        return view.confidence_HW
    return hide_where_unmapped(view.confidence_HW, view.map_HW)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("terrafine.publish"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, share=share, points=points, interval=interval, number=number, area=_area
    )
    environment.tests["nested"] = lambda value: isinstance(value, Mapping)
    environment.tests["table"] = _is_table
    return environment


def _percent(figure: Figure) -> str:
    return "–" if figure.value is None else f"{100 * figure.value:.1f} %"


def _area(square_kilometres: float) -> str:
    decimals = 0 if square_kilometres >= 100 else 2
    return f"{square_kilometres:,.{decimals}f}".replace(",", "\u202f")


def _is_table(value: object) -> bool:
    """A list of mappings with the same keys, shown as one table."""
    if not isinstance(value, Sequence) or not value or isinstance(value, str):
        return False
    return all(isinstance(row, Mapping) and row.keys() == value[0].keys() for row in value)


def _place(grid: PixelGrid, window: Window) -> dict[str, Any]:
    left, bottom, right, top = grid.bounds(window)
    longitude, latitude = lon_lat(grid, (left + right) / 2, (bottom + top) / 2)
    return {
        "crs": grid.crs if len(grid.crs) < 30 else "its own CRS",
        "unit": unit_name(grid.crs),
        "bounds": (left, bottom, right, top),
        "centre": _degrees(longitude, latitude),
        "pixel_metres": pixel_width_metres(grid, window),
    }


def _degrees(longitude: float, latitude: float) -> str:
    """Position as people write it; four decimals are some ten metres."""
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    return f"{abs(latitude):.4f}° {north}, {abs(longitude):.4f}° {east}"


def _areas(data: ReportData) -> dict[str, Any] | None:
    """Area per class of the whole map, largest first."""
    if data.class_pixels is None:
        return None
    each = pixel_area_km2(data.grid, data.view.window)
    counts = {item: data.class_pixels.get(item.code, 0) for item in data.legend.classes}
    total = sum(counts.values())
    rows = [
        {
            "name": item.name,
            "color": item.color,
            "pixels": pixels,
            "km2": pixels * each,
            "share": pixels / total if total else 0.0,
        }
        for item, pixels in sorted(counts.items(), key=lambda pair: -pair[1])
        if pixels
    ]
    absent = [item.name for item, pixels in counts.items() if not pixels]
    return {"rows": rows, "absent": absent, "pixels": total, "km2": total * each}


def _shares(data: ReportData) -> list[dict[str, Any]]:
    """Area shares of map, product and reference where the image has data, for the legend.

    Reference points have no area. Of a long legend only the classes that occur are listed.
    """
    valid = valid_pixels(data.view.image_CHW, data.view.fill)
    columns = {}
    for name in ("product", "map", "reference"):
        codes_HW: UInt8Array | None = getattr(data.view, f"{name}_HW")
        is_points = name == "reference" and data.accuracy and data.accuracy.kind == "points"
        if codes_HW is not None and not is_points:
            counts = np.bincount(codes_HW[valid], minlength=256)[list(data.legend.codes)]
            columns[name] = counts / max(int(counts.sum()), 1)
    return [
        {
            "code": item.code,
            "name": item.name,
            "color": item.color,
            "shares": {name: float(column[k]) for name, column in columns.items()},
        }
        for k, item in enumerate(data.legend.classes)
        if len(data.legend.classes) <= _SHORT_LEGEND or any(c[k] for c in columns.values())
    ]


def _zooms(data: ReportData, renderer: Renderer) -> list[dict[str, Any]]:
    rows = []
    for place, item in enumerate(data.zooms, start=1):
        window = item.zoom.window
        left, bottom, right, top = data.grid.bounds(window)
        longitude, latitude = lon_lat(data.grid, (left + right) / 2, (bottom + top) / 2)
        rows.append(
            {
                "number": place,
                "differing": item.zoom.differing,
                "bounds": (left, bottom, right, top),
                "centre": _degrees(longitude, latitude),
                "metres": window.width * pixel_width_metres(data.grid, window),
                "shape": item.view.shape,
                "panels": [p for p in renderer.panels(item.view) if p.key != "confidence"],
            }
        )
    return rows


def _matrices(data: ReportData) -> list[dict[str, Any]]:
    """Confusion matrices as rows of cells; ``share`` of a cell is of its reference column."""
    out = []
    for name, report in (("Map", data.accuracy), ("Label product", data.product_accuracy)):
        if report is None:
            continue
        rows = [
            {
                "accuracy": row,
                "total": sum(counts),
                "cells": [
                    {
                        "count": count,
                        "right": k == line,
                        "share": count / max(report.classes[k].reference_samples, 1),
                    }
                    for k, count in enumerate(counts)
                ],
            }
            for line, (row, counts) in enumerate(zip(report.classes, report.matrix, strict=True))
        ]
        out.append({"name": name, "report": report, "rows": rows})
    return out


def _class_rows(data: ReportData) -> list[dict[str, Any]]:
    """Per class what map and product reach, in the legend's order and colours."""
    rows = []
    for item in data.legend.classes:
        found = {
            side: report.class_named(item.name) if report else None
            for side, report in (("map", data.accuracy), ("product", data.product_accuracy))
        }
        if any(found.values()):
            rows.append({"name": item.name, "color": item.color, **found})
    return rows


def _charts(data: ReportData) -> dict[str, Markup | None]:
    has_accuracy = data.accuracy is not None or data.product_accuracy is not None
    return {
        "f1": _f1_chart(data) if has_accuracy else None,
        "agreement": _agreement_chart(data),
        "front": _front_chart(data.front, data.model) if data.front else None,
        **_training_charts(data),
    }


def _f1_chart(data: ReportData) -> Markup:
    rows = [
        ClassRow(
            name=row["name"],
            color=row["color"],
            map=_estimated(row["map"].f1) if row["map"] else None,
            product=_estimated(row["product"].f1) if row["product"] else None,
        )
        for row in _class_rows(data)
        if any(side and side.f1.value is not None for side in (row["map"], row["product"]))
    ]
    return interval_chart(rows, label="F1 per class of map and label product, with intervals")


def _estimated(figure: Figure) -> Estimated:
    return Estimated(figure.value, figure.low, figure.high)


def _front_chart(front: Front, model: str) -> Markup:
    best = front.best()
    places = [
        FrontPlace(
            name=place.network,
            seconds=place.seconds_per_megapixel,
            accuracy=_estimated(place.overall_accuracy),
            best=place in best,
            own=model in place.models,
        )
        for place in front.places
    ]
    return front_chart(places, label="Overall accuracy of each network against its time")


def _kept(data: ReportData) -> dict[str, float] | None:
    """How many chips the filter kept; None when there was none to filter."""
    if data.agreement is None or not data.agreement.size:
        return None
    return {
        "all": data.agreement.size,
        "kept": int((data.agreement >= data.agreement_threshold).sum()),
        "median": float(np.median(data.agreement)),
    }


def _agreement_chart(data: ReportData) -> Markup | None:
    kept = _kept(data)
    if data.agreement is None or kept is None:
        return None
    label = (
        f"Agreement of {kept['all']} chips with the label product: "
        f"{kept['kept']} kept, {kept['all'] - kept['kept']} dropped"
    )
    return histogram(data.agreement, data.agreement_threshold, label=label)


def _training_charts(data: ReportData) -> dict[str, Markup | None]:
    runs = [
        (name, history)
        for name, history in (("preliminary", data.preliminary_history), ("final", data.history))
        if history
    ]

    def lines(key: str, suffix: str, style: str) -> list[Series]:
        return [
            Series(
                f"{name}{suffix}",
                f"{name} {style}".strip(),
                [row["epoch"] for row in history],
                [row[key] for row in history],
            )
            for name, history in runs
        ]

    if not runs:
        return {"loss": None, "validation": None, "learning_rate": None}
    return {
        "loss": line_chart(
            lines("train_loss", ", training", "dashed") + lines("validation_loss", "", ""),
            label="Loss over epochs: training dashed, validation solid",
            x_label="epoch",
            form=plain,
        ),
        "validation": line_chart(
            lines("validation_agreement", "", ""),
            label="Agreement with the label product on validation chips over epochs",
            x_label="epoch",
            form=percent,
        ),
        "learning_rate": line_chart(
            lines("learning_rate", "", ""),
            label="Learning rate over epochs",
            x_label="epoch",
            form=plain,
        ),
    }
