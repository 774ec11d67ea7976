"""A picture of a plan: the shards to be mapped over the footprints of the scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from terrafine.geometry import PixelGrid, Window
from terrafine.mapping.plan import Plan
from terrafine.raster import Mosaic, Region, lonlat_outlines

_ZONES = ("#1f77b4", "#e07b00")  # side by side in turn
_SCENES = "#9a9a9a"


def draw_plan(
    path: Path, plans: Sequence[Plan], mosaics: Mapping[str, Mosaic], *, title: str,
    region: Region | None = None,
) -> None:  # fmt: skip
    """Write a PNG in degrees (WGS 84): scenes grey, shards in their zone's colour, region black."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.add_subplot(xlabel="longitude (°)", ylabel="latitude (°)", title=title)
    for number, plan in enumerate(plans):
        windows = [scene.window for scene in mosaics[plan.zone].scenes]
        _add(axes, _outlines(plan.grid, windows), facecolor=_SCENES, alpha=0.25, linewidth=0)
        color = _ZONES[number % len(_ZONES)]
        shards = _outlines(plan.grid, plan.touched)
        _add(axes, shards, facecolor="none", edgecolor=color, linewidth=0.4)
        label = f"{plan.zone}: {len(plan.touched)} shards"
        axes.plot([], [], color=color, label=label)
    if region is not None:
        for part in shapely.get_parts(region.outline):
            axes.plot(*np.asarray(part.exterior.coords)[:, :2].T, color="black", linewidth=0.8)
        axes.plot([], [], color="black", label="region")
    axes.plot([], [], color=_SCENES, alpha=0.5, linewidth=6, label="scenes")
    axes.autoscale_view()
    middle = float(np.mean(axes.get_ylim()))
    axes.set_aspect(1 / max(np.cos(np.radians(middle)), 0.1))
    figure.legend(loc="outside lower center", fontsize="small", ncols=5)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150, format="png")


def _outlines(grid: PixelGrid, windows: Sequence[Window]) -> list[npt.NDArray[np.float64]]:
    bounds = np.array([grid.bounds(window) for window in windows], np.float64).reshape(-1, 4)
    outlines = lonlat_outlines(grid.crs, bounds)
    return [shapely.get_coordinates(outline) for outline in outlines]


def _add(axes: Any, outlines: list[npt.NDArray[np.float64]], **style: Any) -> None:
    axes.add_collection(PolyCollection(outlines, **style))
