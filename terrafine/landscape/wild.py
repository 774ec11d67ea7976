"""Woods, grassland, bare ground and snow: what grows where nobody ploughs."""

from __future__ import annotations

import numpy as np

from terrafine.landscape.canvas import BoolArray, Canvas, pick
from terrafine.landscape.mosaic import stands
from terrafine.landscape.noise import Float32Array, fractal, mixed, ranks, smooth, uniform
from terrafine.landscape.terrain import Terrain
from terrafine.landscape.zones import BARE, GRASS, WOOD
from terrafine.legend import UInt8Array

_WET_WOOD = {"broadleaf": 0.55, "conifer": 0.25, "young wood": 0.18, "open wood": 0.02}
_HIGH_WOOD = {"conifer": 0.65, "broadleaf": 0.10, "young wood": 0.13, "open wood": 0.12}
_DRY_WOOD = {"open wood": 0.45, "young wood": 0.25, "broadleaf": 0.2, "conifer": 0.1}
_CLEARING = {"wet meadow": 0.45, "scrub": 0.30, "soil": 0.25}
# Grass from dry to wet, rock from dark to bright: neighbours in the list lie side by side.
_WET_GRASS = {"dry grass": 0.15, "scrub": 0.35, "wet meadow": 0.50}
_DRY_GRASS = {"steppe": 0.34, "dry grass": 0.46, "scrub": 0.20}
_LOW_BARE = {"dark scree": 0.08, "soil": 0.48, "gravel": 0.12, "sand": 0.32}
_HIGH_BARE = {"dark scree": 0.26, "rock": 0.54, "soil": 0.20}


def paint_wild(
    canvas: Canvas, zone: UInt8Array, terrain: Terrain, rng: np.random.Generator, *, seed: int
) -> None:
    """Stands of wood, swards and bare ground, each with pieces of the others within it."""
    shape = (zone.shape[0], zone.shape[1])
    stand = stands(shape, rng, spacing=46, warp=6).number
    small = stands(shape, rng, spacing=19, warp=3).number
    tufts = smooth(shape, rng, sigma=2.0) + 0.6 * smooth(shape, rng, sigma=12)
    gaps = fractal(shape, rng, slope=1.3)
    wet = terrain.moisture + 0.15 * gaps
    high = terrain.height + 0.08 * gaps > 0.6
    _paint_woods(canvas, zone == WOOD, wet, high, stand, seed)
    clearing = (zone == WOOD) & (uniform(seed, 12, small) < 0.03)
    canvas.paint(clearing, pick(uniform(seed, 13, small), _CLEARING), small)
    canvas.paint((zone == WOOD) & (tufts > 3.1), "scrub", mixed(stand, 1))
    # Soils and swards change gradually: a field with fuzzy edges, and no two boundaries alike.
    ground = ranks(smooth(shape, rng, sigma=24) + 0.7 * fractal(shape, rng, slope=1.0))
    grass = zone == GRASS
    canvas.paint(grass & (wet >= 0.5), pick(ground, _WET_GRASS), mixed(small, 2))
    canvas.paint(grass & (wet < 0.5), pick(ground, _DRY_GRASS), mixed(small, 3))
    canvas.paint(grass & (tufts > 2.6), "young wood", mixed(stand, 4))
    canvas.paint(grass & (tufts < -2.8) & (wet < 0.5), "soil", mixed(stand, 5))
    bare = zone == BARE
    canvas.paint(bare & ~high, pick(ground, _LOW_BARE), mixed(small, 6))
    canvas.paint(bare & high, pick(ground, _HIGH_BARE), mixed(small, 7))
    canvas.paint(bare & (gaps > 2.3), "steppe", mixed(stand, 8))
    canvas.paint(bare & (tufts > 3.1) & (wet > 0.2), "scrub", mixed(stand, 9))


def _paint_woods(
    canvas: Canvas,
    wood: BoolArray,
    wet: Float32Array,
    high: BoolArray,
    stand: np.ndarray[tuple[int, ...], np.dtype[np.uint32]],
    seed: int,
) -> None:
    """Every stand of one age and sort, by how wet and how high it stands."""
    chance = uniform(seed, 11, stand)
    canvas.paint(wood & (wet >= 0.45) & ~high, pick(chance, _WET_WOOD), stand)
    canvas.paint(wood & (wet >= 0.45) & high, pick(chance, _HIGH_WOOD), stand)
    canvas.paint(wood & (wet < 0.45), pick(chance, _DRY_WOOD), stand)


def paint_snow(
    canvas: Canvas, terrain: Terrain, rng: np.random.Generator, *, share: float, seed: int
) -> BoolArray:
    """Snow on the highest ground, ``share`` of the area; old and dirty towards its edge."""
    shape = (terrain.height.shape[0], terrain.height.shape[1])
    score = terrain.elevation / max(float(terrain.elevation.std()), 1e-6)
    score = score + 0.12 * fractal(shape, rng, slope=1.1) - 0.25 * terrain.steepness
    edge = float(np.quantile(score, 1 - share))
    core = float(np.quantile(score, 1 - 0.5 * share))
    snow: BoolArray = score > edge
    drift = stands(shape, rng, spacing=20, warp=4).number
    canvas.paint(snow, "old snow", mixed(seed, drift))
    canvas.paint(score > core, "snow", mixed(seed, drift))
    return snow
