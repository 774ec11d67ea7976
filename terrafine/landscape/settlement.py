"""Towns, villages and the roads that join them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from terrafine.landscape.canvas import BoolArray, Canvas, pick
from terrafine.landscape.mosaic import Layout, parcels
from terrafine.landscape.noise import Float32Array, UInt32Array, mixed, smooth, uniform
from terrafine.landscape.routes import STEP, Lattice, draw
from terrafine.landscape.terrain import PIXEL_METRES, Terrain

_BLOCKS = Layout(district=110, width=(20, 40), length=(15, 32), split=0.2)
_VILLAGES_PER_KM2 = 1.3
_TOWN_EVERY = 7

_ROOFS = {"red roof": 0.36, "dark roof": 0.30, "bright roof": 0.16, "yard": 0.18}
_YARDS = {"yard": 0.5, "concrete": 0.32, "soil": 0.10, "wet meadow": 0.08}
_HALLS = {"bright roof": 0.6, "dark roof": 0.2, "concrete": 0.2}
_GARDENS = {
    "wet meadow": 0.20,
    "scrub": 0.08,
    "broadleaf": 0.22,
    "young crop": 0.10,
    "green crop": 0.07,
    "yard": 0.30,
    "soil": 0.08,
}
_PARKS = {"broadleaf": 0.5, "wet meadow": 0.4, "clear water": 0.1}


@dataclass(frozen=True)
class Place:
    """A village or town: its middle in pixels and its relative size."""

    row: float
    col: float
    size: float


def found_places(terrain: Terrain, water: BoolArray, rng: np.random.Generator) -> list[Place]:
    """Places on flat, low and dry ground, apart from each other; every seventh is a town."""
    height, width = water.shape
    wanted = max(3, round(height * width * (PIXEL_METRES / 1000) ** 2 * _VILLAGES_PER_KM2))
    apart = 0.65 * np.sqrt(height * width / wanted)
    tried = rng.uniform(0.03, 0.97, (60 * wanted, 2)) * (height, width)
    rows, cols = tried.astype(int).T
    cost = 1.2 * terrain.steepness[rows, cols] + 1.5 * terrain.height[rows, cols]
    cost = cost + 2.0 * water[rows, cols] + rng.uniform(0, 0.5, len(cost))
    chosen: list[Place] = []
    for index in np.argsort(cost, kind="stable"):
        row, col = float(tried[index, 0]), float(tried[index, 1])
        if all(np.hypot(row - p.row, col - p.col) > apart for p in chosen):
            size = 2.6 if len(chosen) % _TOWN_EVERY == 0 else float(rng.uniform(0.6, 1.3))
            chosen.append(Place(row, col, size))
        if len(chosen) == wanted:
            break
    return chosen


def built_up(
    places: list[Place], taken: BoolArray, terrain: Terrain, rng: np.random.Generator, share: float
) -> BoolArray:
    """(H, W) bool: the ground of settlements, about ``share`` of the area, none of ``taken``."""
    height, width = taken.shape
    shape = (height, width)
    rows, cols = (axis.astype(np.float32) for axis in np.indices(shape))
    score = np.full(shape, -np.inf, np.float32)
    for place in places:
        away = np.hypot(rows - np.float32(place.row), cols - np.float32(place.col))
        score = np.maximum(score, np.float32(1.0) - away / np.float32(90 * place.size))
    score = score + 0.16 * smooth(shape, rng, sigma=14) - 0.5 * terrain.steepness
    score[taken] = -np.inf
    return np.asarray(score > np.quantile(score[::4, ::4], 1 - share), bool)


def paint_settlement(
    canvas: Canvas, where: BoolArray, rng: np.random.Generator, *, seed: int
) -> None:
    """Blocks between streets, lots with a house of 3..10 pixels and a garden, halls, parks."""
    height, width = where.shape
    blocks = parcels((height, width), rng, _BLOCKS)
    block, district = blocks.parcel, blocks.district
    use = uniform(seed, 41, district.number)
    park = uniform(seed, 42, block.number) < 0.06
    halls = use > 0.68
    side = np.where(halls, 24.0, 9.0 + 4.0 * use).astype(np.float32)
    lot, lot_edge = _lots(block.number, blocks.across, block.along, side)
    # most gardens are like those around them
    shared = uniform(seed, 43, lot) < 0.7
    chance = np.where(shared, uniform(seed, 44, block.number), uniform(seed, 45, lot))
    canvas.paint(where, pick(chance.astype(np.float32), _GARDENS), lot)
    margin = 0.6 + 1.8 * uniform(seed, 52, lot) * (1.2 - use)
    street = block.edge < 1.0 + 0.7 * (uniform(seed, 53, district.number) > 0.5)
    dense = uniform(seed, 46, lot) < np.where(halls, 0.75, 0.55 + 0.4 * use)
    house = where & (lot_edge > margin) & (block.edge > 2.2) & dense
    canvas.paint(house & ~halls, pick(uniform(seed, 47, lot), _ROOFS), mixed(lot, 1))
    ground = pick(uniform(seed, 48, block.number), _YARDS)
    canvas.paint(where & halls & ~house, ground, mixed(block.number, 2))
    canvas.paint(house & halls, pick(uniform(seed, 49, lot), _HALLS), mixed(lot, 3))
    green = pick(uniform(seed, 50, block.number), _PARKS)
    canvas.paint(where & park, green, mixed(block.number, 4))
    paved = pick(uniform(seed, 51, district.number), {"asphalt": 0.65, "concrete": 0.35})
    canvas.paint(where & street, paved, mixed(district.number, 5))


def _lots(
    block: UInt32Array, across: Float32Array, along: Float32Array, side: Float32Array
) -> tuple[UInt32Array, Float32Array]:
    """Squares of ``side`` pixels within blocks, and the distance to their edges."""
    number_across, number_along = np.floor(across / side), np.floor(along / side)
    inside = [
        np.minimum(place / side - number, 1 - place / side + number) * side
        for place, number in ((across, number_across), (along, number_along))
    ]
    lot = mixed(block, number_across.astype(np.int32), number_along.astype(np.int32))
    return lot, np.minimum(*inside).astype(np.float32)


def paint_roads(
    canvas: Canvas,
    places: list[Place],
    water: BoolArray,
    terrain: Terrain,
    rng: np.random.Generator,
) -> BoolArray:
    """Roads of 2..5 pixels that join all places and leave the scene; returns where they are."""
    height, width = water.shape
    coarse = (-(-width // STEP), -(-height // STEP))
    steep = cv2.resize(terrain.steepness, coarse, interpolation=cv2.INTER_AREA)
    high = cv2.resize(terrain.height, coarse, interpolation=cv2.INTER_AREA)
    wet = cv2.resize(water.astype(np.float32), coarse, interpolation=cv2.INTER_AREA)
    lattice = Lattice.of(0.4 + 2.0 * steep**2 + high**2 + 4.0 * wet)
    exits = [(float(rng.uniform(0.2, 0.8) * height), side * (width - 1.0)) for side in (0, 1)] + [
        (side * (height - 1.0), float(rng.uniform(0.2, 0.8) * width)) for side in (0, 1)
    ]
    ends = [(place.row, place.col) for place in places] + exits
    nodes = sorted({lattice.cell(row, col) for row, col in ends})
    mask = np.zeros((height, width), np.uint8)
    for way in lattice.network(nodes, loops=0.35):
        breadth = int(rng.choice([2, 3, 3, 4, 5]))
        if len(way) > 1:
            draw(mask, lattice.line(way, rng, wander=1.5), breadth, 1 + breadth % 2)
    canvas.paint(mask == 1, "asphalt", 101)
    canvas.paint(mask == 2, "concrete", 102)
    return np.asarray(mask > 0, bool)
