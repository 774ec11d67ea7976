"""A picture of the held-out scene: image, truth and product, whole and enlarged."""

from __future__ import annotations

import io
from typing import Final

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from terrafine.landscape.optics import UInt16Array
from terrafine.landscape.terrain import PIXEL_METRES
from terrafine.legend import SEVEN, UInt8Array
from terrafine.publish.figures import class_palette, colour, render_image, stretch_of

_ZOOM: Final = 160
_LONGEST: Final = 1024
_INK, _FRAME = "#1d2733", "#111111"


def picture(
    image_CHW: UInt16Array, truth_HW: UInt8Array, product_HW: UInt8Array, *, nodata: int
) -> bytes:
    """PNG bytes: image (true colour), truth and product side by side, below them a detail.

    ``product_HW``: the product on the truth's pixels. The detail is the square of 160 pixels with
    the most edges.
    """
    bands = (0, 1, 2)
    shown = render_image(image_CHW, nodata, bands, stretch_of(image_CHW, nodata, bands, (1, 96)))
    palette = class_palette(SEVEN)
    panels = (shown, colour(truth_HW, palette), colour(product_HW, palette))
    figure = Figure(figsize=(15, 11.2), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    figure.subplots_adjust(0.01, 0.06, 0.99, 0.965, wspace=0.02, hspace=0.07)
    row, col, side = _busiest(truth_HW)
    step = -(-max(truth_HW.shape) // _LONGEST)
    right = float((truth_HW == product_HW).mean())
    titles = ("image", "truth (3 m)", f"label product (10 m), right on {right:.1%}")
    for place, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        _show(axes[0, place], panel[::step, ::step], title)
        axes[0, place].add_patch(
            Rectangle(
                (col / step, row / step), side / step, side / step, fill=False, ec=_FRAME, lw=1.5
            )
        )
        metres = f"{side * PIXEL_METRES:.0f} m"
        _show(axes[1, place], panel[row : row + side, col : col + side], f"detail, {metres} wide")
    _legend(figure, truth_HW)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _busiest(truth_HW: UInt8Array) -> tuple[int, int, int]:
    """Upper left corner and side of the square with the most pixels beside another class."""
    side = min(_ZOOM, *truth_HW.shape)
    edges = np.zeros(truth_HW.shape, np.float32)
    edges[:, 1:] += truth_HW[:, 1:] != truth_HW[:, :-1]
    edges[1:] += truth_HW[1:] != truth_HW[:-1]
    total = cv2.integral(edges)
    strips = total[side:] - total[:-side]
    count = strips[:, side:] - strips[:, :-side]
    row, col = np.unravel_index(int(count.argmax()), count.shape)
    return int(row), int(col), side


def _show(axes: Axes, rgba: UInt8Array, title: str) -> None:
    axes.imshow(rgba, interpolation="nearest")
    axes.set_title(title, fontsize=11, color=_INK)
    axes.set_axis_off()


def _legend(figure: Figure, truth_HW: UInt8Array) -> None:
    """Swatches with the classes' names and their shares of the truth."""
    shares = np.bincount(truth_HW.ravel(), minlength=256) / truth_HW.size
    swatches = [Rectangle((0, 0), 1, 1, fc=item.color, ec="#888888") for item in SEVEN.classes]
    names = [f"{item.name} {shares[item.code]:.1%}" for item in SEVEN.classes]
    figure.legend(swatches, names, loc="lower center", ncols=len(names), frameon=False, fontsize=11)
