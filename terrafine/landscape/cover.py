"""The true cover of one scene, put together from terrain to rooftops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terrafine.landscape.canvas import BoolArray, Canvas, pick
from terrafine.landscape.drainage import Water, make_water
from terrafine.landscape.farmland import farm_parcels, paint_farmland
from terrafine.landscape.kinds import land_table
from terrafine.landscape.mosaic import Parcels, stands
from terrafine.landscape.noise import Float32Array, UInt32Array, mixed, uniform
from terrafine.landscape.settlement import (
    built_up,
    found_places,
    paint_roads,
    paint_settlement,
)
from terrafine.landscape.terrain import Terrain, make_terrain
from terrafine.landscape.wild import paint_snow, paint_wild
from terrafine.landscape.zones import divide, suitability
from terrafine.legend import UInt8Array

# Shares of the area given to zones; details within them (gardens, balks, clearings) move the
# classes' shares to about those of the paper's test points.
_ZONE_SHARES = (0.335, 0.232, 0.136, 0.297)
_SETTLEMENT_SHARE = 0.108
_WATER_SHARE = 0.053
_SNOW_SHARE = 0.006


@dataclass(frozen=True)
class Cover:
    """One scene's ground, (H, W) each.

    ``truth``: uint8 codes of the seven classes. ``kind``: uint8 numbers in KINDS. ``thing``:
    uint32, the same within an object. ``across``: pixels across the parcel, for crop rows.
    """

    truth: UInt8Array
    kind: UInt8Array
    thing: UInt32Array
    across: Float32Array
    terrain: Terrain


def make_cover(size: int, rng: np.random.Generator) -> Cover:
    """The ground of a scene of ``size`` x ``size`` pixels, a function of the generator's state."""
    shape = (size, size)
    seed = int(rng.integers(2**31))
    terrain = make_terrain(size, rng)
    plots = farm_parcels(shape, rng)
    zone = divide(suitability(terrain, rng), plots.parcel, np.array(_ZONE_SHARES, np.float32))
    water = make_water(terrain, rng, share=_WATER_SHARE)
    canvas = Canvas(shape)
    paint_wild(canvas, zone, terrain, rng, seed=seed)
    paint_farmland(canvas, zone == 0, plots, terrain, seed=seed)
    snow = paint_snow(canvas, terrain, rng, share=_SNOW_SHARE, seed=seed)
    _paint_water(canvas, water, plots, rng, seed=seed)
    places = found_places(terrain, water.all, rng)
    ground = built_up(places, water.river | water.lake | snow, terrain, rng, _SETTLEMENT_SHARE)
    paint_settlement(canvas, ground, rng, seed=seed)
    paint_roads(canvas, places, water.river | water.lake, terrain, rng)
    return Cover(land_table()[canvas.kind], canvas.kind, canvas.thing, plots.across, terrain)


def _paint_water(
    canvas: Canvas, water: Water, plots: Parcels, rng: np.random.Generator, *, seed: int
) -> None:
    """Lakes clear or turbid, a river of one colour, streams; gravel and trees along the river."""
    shape = (canvas.kind.shape[0], canvas.kind.shape[1])
    reach = stands(shape, rng, spacing=160, warp=10).number
    bank: BoolArray = water.banks
    canvas.paint(bank, "gravel", mixed(seed, 61))
    canvas.paint(water.stream, "stream", mixed(seed, 62, reach))
    tone = pick(uniform(seed, 63, reach), {"clear water": 0.6, "turbid water": 0.4})
    canvas.paint(water.lake, tone, mixed(seed, 64, reach))
    course = "turbid water" if rng.uniform() < 0.5 else "clear water"
    canvas.paint(water.river, course, mixed(seed, 65))
