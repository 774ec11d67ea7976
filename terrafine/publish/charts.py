"""The report's charts as inline SVG, coloured by the page's style sheet (so they print and adapt).

Every chart is an ``<svg role="img">`` with an ``aria-label``; the numbers behind it stand in a
table beside it or in the label. Elements are built with ElementTree, which escapes every text.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One line: ``style`` is a CSS class ("final", "preliminary", with "dashed" for training)."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Estimated:
    """A value with its interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ClassRow:
    """One class of an interval chart: its colour and what map and product reach."""

    name: str
    color: str
    map: Estimated | None
    product: Estimated | None


@dataclass(frozen=True)
class FrontPlace:
    """A network of a front chart: on the front or not, ``own``: the one that made this map."""

    name: str
    seconds: float
    accuracy: Estimated
    best: bool
    own: bool


@dataclass(frozen=True)
class _Axis:
    """Data values onto pixels; ``start`` may lie beyond ``stop`` (the y axis grows upwards)."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.stop - self.start), 2)

    def ticks(self, count: int, *, whole: bool = False) -> list[float]:
        from matplotlib.ticker import MaxNLocator  # slow to import, and only charts need it

        found = MaxNLocator(nbins=count, steps=[1, 2, 5, 10], integer=whole).tick_values(
            self.low, self.high
        )
        slack = 1e-9 * (self.high - self.low)
        return [float(t) for t in found if self.low - slack <= t <= self.high + slack]


def percent(value: float) -> str:
    """0.5 -> "50 %"."""
    return f"{100 * value:.3g} %"


def plain(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def line_chart(series: Sequence[Series], *, label: str, x_label: str, form: Format) -> Markup:
    """Lines over a whole-numbered x (epochs); None without any finite point is the caller's case.

    Values that are not finite break nothing: they are left out of the line.
    """
    width, height, left, top, bottom = 380, 230, 52, 12, 34
    svg = _svg(width, height, label)
    finite = [_finite(s) for s in series]
    xs = [x for pairs in finite for x, _ in pairs] or [0.0, 1.0]
    ys = [y for pairs in finite for _, y in pairs] or [0.0, 1.0]
    margin = 0.06 * (max(ys) - min(ys)) or 0.1 * abs(max(ys)) or 0.1
    across = _Axis(min(xs), max(xs), left, width - 12)
    up = _Axis(max(min(ys) - margin, min(0.0, min(ys))), max(ys) + margin, height - bottom, top)
    for value in up.ticks(5):
        y = up.at(value)
        _add(svg, "line", "grid", x1=left, x2=width - 12, y1=y, y2=y)
        _text(svg, left - 6, y + 4, form(value), "tick end")
    for value in across.ticks(6, whole=True):
        _text(svg, across.at(value), height - bottom + 16, f"{value:g}", "tick middle")
    _text(svg, (left + width - 12) / 2, height - 3, x_label, "tick middle")
    for item, pairs in zip(series, finite, strict=True):
        points = [(across.at(x), up.at(y)) for x, y in pairs]
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        _add(svg, "polyline", f"line {item.style}", points=path)
        if len(points) == 1:
            _add(svg, "circle", f"dot {item.style}", cx=points[0][0], cy=points[0][1], r=3)
    return _markup(svg)


def interval_chart(rows: Sequence[ClassRow], *, label: str) -> Markup:
    """Dots with interval whiskers per class, map above product, on an axis of 0 to 100 %."""
    width, left, right, row_height, top = 640, 150, 26, 40, 8
    height = top + row_height * len(rows) + 26
    svg = _svg(width, height, label)
    across = _Axis(0.0, 1.0, left, width - right)
    for value in across.ticks(5):
        x = across.at(value)
        _add(svg, "line", "grid", x1=x, x2=x, y1=top, y2=height - 24)
        _text(svg, x, height - 8, percent(value), "tick middle")
    for place, row in enumerate(rows):
        middle = top + (place + 0.5) * row_height
        _add(svg, "rect", "swatch", x=4, y=middle - 7, width=14, height=14, rx=3, fill=row.color)
        _text(svg, 26, middle + 4, row.name, "name")
        for estimated, style, offset in ((row.map, "map", -7.0), (row.product, "product", 7.0)):
            if estimated is not None:
                _whisker(svg, across, estimated, middle + offset, style, left)
    return _markup(svg)


def histogram(values: npt.NDArray[np.float64], threshold: float, *, label: str) -> Markup:
    """Shares 0..1 in bins of 5 %; bins below ``threshold`` coloured apart, the threshold a line."""
    width, height, left, top, bottom = 640, 210, 52, 22, 36
    right = width - 24
    svg = _svg(width, height, label)
    edges = np.linspace(0, 1, 21)
    counts, _ = np.histogram(values, edges)
    across = _Axis(0.0, 1.0, left, right)
    up = _Axis(0.0, max(float(counts.max(initial=0)), 1.0), height - bottom, top)
    for value in up.ticks(4, whole=True):
        y = up.at(value)
        _add(svg, "line", "grid", x1=left, x2=right, y1=y, y2=y)
        _text(svg, left - 6, y + 4, f"{value:g}", "tick end")
    for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        if count:
            x, y = across.at(low), up.at(count)
            style = "bar dropped" if high <= threshold + 1e-9 else "bar kept"
            size = {"width": across.at(high) - x - 1, "height": up.at(0) - y}
            _add(svg, "rect", style, x=x + 0.5, y=y, **size)
    for value in across.ticks(5):
        _text(svg, across.at(value), height - bottom + 16, percent(value), "tick middle")
    _text(
        svg, (left + right) / 2, height - 4, "agreement of a chip with the product", "tick middle"
    )
    x = across.at(threshold)
    _add(svg, "line", "threshold", x1=x, x2=x, y1=top - 6, y2=height - bottom)
    _text(svg, x + 5, top, f"dropped below {percent(threshold)}", "tick")
    return _markup(svg)


def front_chart(places: Sequence[FrontPlace], *, label: str) -> Markup:
    """Overall accuracy against seconds per megapixel, which grow by factors; the front as steps."""
    from matplotlib.ticker import LogLocator  # slow to import, and only charts need it

    width, height, left, top, bottom = 640, 300, 60, 16, 46
    right = width - 24
    svg = _svg(width, height, label)
    shown = [p for p in places if p.accuracy.value is not None]
    ends = [v for p in shown for v in (p.accuracy.low, p.accuracy.value, p.accuracy.high)]
    ys = [value for value in ends if value is not None] or [0.0, 1.0]
    xs = [np.log10(p.seconds) for p in shown] or [0.0]
    across = _Axis(min(xs) - 0.08, max(xs) + 0.3, left, right)
    margin = 0.1 * (max(ys) - min(ys)) or 0.01
    up = _Axis(min(ys) - margin, max(ys) + margin, height - bottom, top)
    for value in up.ticks(5):
        y = up.at(value)
        _add(svg, "line", "grid", x1=left, x2=right, y1=y, y2=y)
        _text(svg, left - 6, y + 4, percent(value), "tick end")
    for value in LogLocator(subs=(1, 2, 5)).tick_values(10**across.low, 10**across.high):
        if across.low <= np.log10(value) <= across.high:
            x = across.at(float(np.log10(value)))
            _add(svg, "line", "grid", x1=x, x2=x, y1=top, y2=height - bottom)
            _text(svg, x, height - bottom + 16, plain(value), "tick middle")
    _text(svg, (left + right) / 2, height - 6, "seconds per megapixel", "tick middle")
    best = sorted((p for p in shown if p.best), key=lambda p: p.seconds)
    corners = [(across.at(np.log10(p.seconds)), up.at(p.accuracy.value or 0.0)) for p in best]
    steps = [f"{x},{before} {x},{y}" for (_, before), (x, y) in pairwise(corners)]
    if steps:
        x, y = corners[0]
        _add(svg, "polyline", "line final", points=f"{x},{y} {' '.join(steps)}")
    for p in shown:
        x, style = across.at(np.log10(p.seconds)), "map" if p.best else "product"
        if p.accuracy.low is not None and p.accuracy.high is not None:
            low, high = up.at(p.accuracy.low), up.at(p.accuracy.high)
            _add(svg, "line", f"whisker {style}", x1=x, x2=x, y1=low, y2=high)
        y = up.at(p.accuracy.value or 0.0)
        _add(svg, "circle", f"dot {style}", cx=x, cy=y, r=4.5)
        if p.own:
            _add(svg, "circle", "ring", cx=x, cy=y, r=9)
        _text(svg, x + 12, y - 6, p.name, "name")
    return _markup(svg)


def _whisker(
    svg: ET.Element, across: _Axis, estimated: Estimated, y: float, style: str, left: float
) -> None:
    if estimated.value is None:
        _text(svg, left + 4, y + 4, f"{style}: undefined", "tick")
        return
    x = across.at(estimated.value)
    if estimated.low is not None and estimated.high is not None:
        low, high = across.at(estimated.low), across.at(estimated.high)
        _add(svg, "line", f"whisker {style}", x1=low, x2=high, y1=y, y2=y)
        for end in (low, high):
            _add(svg, "line", f"whisker {style}", x1=end, x2=end, y1=y - 3, y2=y + 3)
    if style == "map":
        _add(svg, "circle", f"dot {style}", cx=x, cy=y, r=4.5)
    else:
        _add(svg, "rect", f"dot {style}", x=x - 4, y=y - 4, width=8, height=8)


def _finite(series: Series) -> list[tuple[float, float]]:
    pairs = zip(series.x, series.y, strict=True)
    return [(x, y) for x, y in pairs if np.isfinite(x) and np.isfinite(y)]


def _svg(width: float, height: float, label: str) -> ET.Element:
    return ET.Element(
        "svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label}
    )


def _add(parent: ET.Element, tag: str, style: str, **attributes: float | str) -> ET.Element:
    texts = {k: v if isinstance(v, str) else f"{v:g}" for k, v in attributes.items()}
    return ET.SubElement(parent, tag, {"class": style, **texts})


def _text(svg: ET.Element, x: float, y: float, text: str, style: str) -> None:
    _add(svg, "text", style, x=x, y=y).text = text


def _markup(svg: ET.Element) -> Markup:
    return Markup(ET.tostring(svg, encoding="unicode"))  # escaped by ElementTree
