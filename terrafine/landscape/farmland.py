"""Farmland: parcels and strips of crops, tracks, ditches, hedges and what else lies between."""

from __future__ import annotations

import numpy as np

from terrafine.landscape.canvas import BoolArray, Canvas, pick
from terrafine.landscape.mosaic import Layout, Parcels, parcels
from terrafine.landscape.noise import mixed, uniform
from terrafine.landscape.terrain import Terrain

# Pixels: parcels of 33 x 50 m up to 200 x 285 m, strips down to 9 m wide.
_LAYOUT = Layout(district=170, width=(11, 66), length=(17, 95))
_STRIPS = 0.22

_CROPS = {
    "green crop": 0.26,
    "young crop": 0.17,
    "ripe crop": 0.15,
    "stubble": 0.13,
    "ploughed": 0.13,
    "paddy": 0.06,
    "greenhouse": 0.02,
    "orchard": 0.06,
}
# Parcels that are no cropland: meadows, woodlots, abandoned ground, fish ponds.
_OTHERS = {
    "wet meadow": 0.30,
    "dry grass": 0.17,
    "young wood": 0.15,
    "broadleaf": 0.08,
    "soil": 0.22,
    "turbid water": 0.08,
}
_OTHER_SHARE = 0.08


def farm_parcels(shape: tuple[int, int], rng: np.random.Generator) -> Parcels:
    """The parcels that farmland would be divided into, everywhere."""
    return parcels(shape, rng, _LAYOUT)


def paint_farmland(
    canvas: Canvas, where: BoolArray, plots: Parcels, terrain: Terrain, *, seed: int
) -> None:
    """Crops by parcel, districts with a main crop; strips; field edges of every sort."""
    plot, district = plots.parcel.number, plots.district.number
    # a district has its season: most parcels follow it
    main = uniform(seed, 21, district)
    own = uniform(seed, 22, plot)
    season = np.where(uniform(seed, 23, plot) < 0.35, main, own).astype(np.float32)
    canvas.paint(where, pick(season, _CROPS), plot)
    striped = where & (uniform(seed, 24, plot) < _STRIPS)
    breadth = 3 + 4 * uniform(seed, 25, plot)
    strip = mixed(plot, np.floor(plots.across / breadth).astype(np.int32))
    canvas.paint(striped, pick(uniform(seed, 26, strip), _CROPS), strip)
    other = where & (uniform(seed, 27, plot) < _OTHER_SHARE)
    canvas.paint(other, pick(uniform(seed, 28, plot), _OTHERS), plot)
    _paint_edges(canvas, where, plots, seed=seed)


def _paint_edges(canvas: Canvas, where: BoolArray, plots: Parcels, *, seed: int) -> None:
    """Balks of grass between parcels; hedges, ditches and tracks along districts and some rows."""
    plot, district = plots.parcel, plots.district
    habit = uniform(seed, 31, district.number)
    balk = where & (plot.edge < 0.5 + 0.6 * habit) & (habit < 0.14)
    canvas.paint(balk, pick(uniform(seed, 32, plot.number), {"dry grass": 1, "wet meadow": 1}), 1)
    own = uniform(seed, 33, plot.number)
    lined = where & (plot.edge < 1.6) & (own < 0.04)
    canvas.paint(lined, "young wood", mixed(plot.number, 2))
    paved = where & (plot.edge < 0.75) & (own > 0.96)
    canvas.paint(paved, "concrete", mixed(district.number, 3))
    # the district's border: a track, a row of trees, a ditch or nothing
    border = where & (district.edge < 1.0 + habit)
    canvas.paint(border & (habit < 0.22), "concrete", mixed(district.number, 4))
    canvas.paint(border & (habit >= 0.22) & (habit < 0.30), "soil", mixed(district.number, 5))
    trees = where & (district.edge < 2.6) & (habit >= 0.30) & (habit < 0.48)
    canvas.paint(trees, "broadleaf", mixed(district.number, 6))
    ditch = where & (district.edge < 0.9) & (habit >= 0.48) & (habit < 0.60)
    canvas.paint(ditch, "stream", mixed(district.number, 7))
