"""A picture of the map for a mail or a slide: legend, scale bar, north arrow, in one PNG."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend, UInt8Array
from terrafine.publish.figures import class_palette, colour
from terrafine.publish.geography import pixel_width_metres

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _QUIET, _PAPER = "#1d2733", "#5b6876", "#f1f3f5"
_DPI = 150

# Inches: margin, header with the title, footer with the scale bar, legend column and its rows.
_MARGIN, _HEADER, _FOOTER = 0.3, 0.5, 0.75
_LEGEND_WIDTH, _LEGEND_ROW = 2.2, 0.24
_LONGEST_SIDE = 9.0


@dataclass(frozen=True)
class _Layout:
    """Sizes in inches; positions count from the lower left corner."""

    picture_width: float
    picture_height: float
    body_height: float

    @property
    def size(self) -> tuple[float, float]:
        width = self.picture_width + _LEGEND_WIDTH + 3 * _MARGIN
        return width, self.body_height + _HEADER + _FOOTER

    def box(
        self, left: float, bottom: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """A rectangle in inches as matplotlib's shares of the figure."""
        full_width, full_height = self.size
        return left / full_width, bottom / full_height, width / full_width, height / full_height


def quicklook(
    map_HW: UInt8Array,
    *,
    grid: PixelGrid,
    window: Window,
    legend: Legend,
    title: str,
    note: str = "",
) -> bytes:
    """PNG bytes of a class map with title, legend and shares, scale bar and north arrow.

    ``map_HW``: (H, W) uint8 codes of the whole ``window``, at any resolution (decimate a large map
    first, with :func:`terrafine.publish.overviews.mode_downsample`). Pixels without a class stay
    hatched. North is the grid's north. ``note``: one line under the picture.
    """
    # slow to import, and only this needs it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layout = _layout(map_HW.shape, len(legend.classes))
    figure = Figure(figsize=layout.size, dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _draw_picture(figure, layout, map_HW, legend)
    _draw_legend(figure, layout, map_HW, legend)
    metres = pixel_width_metres(grid, window) * window.width
    _draw_footer(figure, layout, metres, note)
    top = (layout.size[1] - 0.5 * _HEADER) / layout.size[1]
    figure.text(
        _MARGIN / layout.size[0], top, title, fontsize=13, weight="bold", color=_INK, va="center"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def scale_bar_metres(available: float) -> float:
    """The longest of 1, 2, 5, 10, 20, 50 ... metres that is not longer than ``available``."""
    decade = 10.0 ** math.floor(math.log10(available))
    return max(digit * decade for digit in (1, 2, 5) if digit * decade <= available)


def _layout(shape: tuple[int, ...], classes: int) -> _Layout:
    rows, cols = shape
    scale = _LONGEST_SIDE / max(rows, cols * 1.3)
    width, height = cols * scale, rows * scale
    return _Layout(width, height, max(height, (classes + 2) * _LEGEND_ROW))


def _draw_picture(figure: Figure, layout: _Layout, map_HW: UInt8Array, legend: Legend) -> None:
    from matplotlib.patches import Rectangle

    bottom = _FOOTER + layout.body_height - layout.picture_height
    axes = figure.add_axes(layout.box(_MARGIN, bottom, layout.picture_width, layout.picture_height))
    rows, cols = map_HW.shape
    axes.add_patch(
        Rectangle((-0.5, -0.5), cols, rows, facecolor=_PAPER, edgecolor="#d5dae0", hatch="////")
    )
    axes.imshow(
        colour(map_HW, class_palette(legend)), interpolation="nearest", aspect="auto", zorder=2
    )
    axes.set_axis_off()


def _draw_legend(figure: Figure, layout: _Layout, map_HW: UInt8Array, legend: Legend) -> None:
    """Swatch, name and share of the mapped area of every class."""
    from matplotlib.patches import Rectangle

    axes = _inch_axes(
        figure,
        layout,
        (layout.picture_width + 2 * _MARGIN, _FOOTER, _LEGEND_WIDTH, layout.body_height),
    )
    counts = np.bincount(map_HW.ravel(), minlength=256)
    mapped = max(int(counts[list(legend.codes)].sum()), 1)
    for place, item in enumerate(legend.classes):
        y = layout.body_height - (place + 0.5) * _LEGEND_ROW
        axes.add_patch(
            Rectangle((0, y - 0.07), 0.24, 0.14, facecolor=item.color, edgecolor=_QUIET, lw=0.4)
        )
        axes.text(0.34, y, item.name, fontsize=9, color=_INK, va="center")
        share = f"{counts[item.code] / mapped:.1%}"
        axes.text(_LEGEND_WIDTH, y, share, fontsize=9, color=_QUIET, va="center", ha="right")
    axes.text(
        0,
        layout.body_height - (len(legend.classes) + 0.7) * _LEGEND_ROW,
        "share of the mapped area",
        fontsize=7.5,
        color=_QUIET,
        va="center",
    )


def _draw_footer(figure: Figure, layout: _Layout, metres: float, note: str) -> None:
    """Scale bar (true to the picture), north arrow and note under the picture."""
    from matplotlib.patches import Polygon, Rectangle

    width = layout.size[0] - 2 * _MARGIN
    axes = _inch_axes(figure, layout, (_MARGIN, 0.0, width, _FOOTER))
    length = scale_bar_metres(metres / 3)
    inches = layout.picture_width * length / metres
    for half, fill in ((0, _INK), (1, "white")):
        axes.add_patch(
            Rectangle((half * inches / 2, 0.5), inches / 2, 0.07, fc=fill, ec=_INK, lw=0.8)
        )
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text(inches + 0.1, 0.535, label, fontsize=9, color=_INK, va="center")
    x = layout.picture_width - 0.1
    axes.add_patch(
        Polygon([(x, 0.66), (x - 0.08, 0.4), (x, 0.46), (x + 0.08, 0.4)], closed=True, color=_INK)
    )
    axes.text(x - 0.16, 0.535, "N", fontsize=10, weight="bold", color=_INK, va="center", ha="right")
    axes.text(0, 0.2, note, fontsize=7.5, color=_QUIET, va="center")


def _inch_axes(figure: Figure, layout: _Layout, inches: tuple[float, float, float, float]) -> Axes:
    """Axes whose data units are inches."""
    axes = figure.add_axes(layout.box(*inches))
    axes.set_xlim(0, inches[2])
    axes.set_ylim(0, inches[3])
    axes.set_axis_off()
    return axes
