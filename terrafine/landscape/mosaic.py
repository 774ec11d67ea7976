"""Pieces the ground is divided into: natural stands, and parcels laid out by people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terrafine.landscape.noise import Float32Array, UInt32Array, mixed, smooth, uniform


@dataclass(frozen=True)
class Pieces:
    """(H, W) each: ``number`` a hash that is the same within a piece, ``edge`` pixels to its edge.

    ``along``: pixels along the piece's main direction (for crop rows and lots).
    """

    number: UInt32Array
    edge: Float32Array
    along: Float32Array


def stands(
    shape: tuple[int, int], rng: np.random.Generator, *, spacing: float, warp: float
) -> Pieces:
    """Voronoi cells of a jittered grid, their edges bent by ``warp`` pixels."""
    rows, cols = (axis.astype(np.float32) for axis in np.indices(shape))
    bend = max(spacing / 4, 2)
    rows = rows + warp * smooth(shape, rng, sigma=bend)
    cols = cols + warp * smooth(shape, rng, sigma=bend)
    number, edge = _voronoi(rows, cols, spacing, int(rng.integers(2**31)))
    return Pieces(number, edge, cols)


def _voronoi(
    rows: Float32Array, cols: Float32Array, spacing: float, seed: int
) -> tuple[UInt32Array, Float32Array]:
    """Number of the nearest seed point, and about the distance to the cell's edge."""
    cell_row = np.floor(rows / spacing).astype(np.int32)
    cell_col = np.floor(cols / spacing).astype(np.int32)
    nearest: Float32Array = np.full(rows.shape, np.inf, np.float32)
    second = nearest.copy()
    number: UInt32Array = np.zeros(rows.shape, np.uint32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row, col = cell_row + down, cell_col + right
            code = mixed(seed, row, col)
            jitter_row = (code & np.uint32(0xFFFF)).astype(np.float32) / 65536
            jitter_col = (code >> np.uint32(16)).astype(np.float32) / 65536
            away = np.hypot(
                (row + jitter_row) * spacing - rows, (col + jitter_col) * spacing - cols
            ).astype(np.float32)
            closer = away < nearest
            second = np.where(closer, nearest, np.minimum(second, away))
            number = np.where(closer, code, number)
            nearest = np.where(closer, away, nearest)
    return number, ((second - nearest) / 2).astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """How parcels are laid out: sizes in pixels, each drawn between its two ends by district."""

    district: float
    width: tuple[float, float]
    length: tuple[float, float]
    split: float = 0.3


@dataclass(frozen=True)
class Parcels:
    """Parcels within districts of one orientation each. ``across``: pixels across the parcel."""

    parcel: Pieces
    district: Pieces
    across: Float32Array


def parcels(shape: tuple[int, int], rng: np.random.Generator, layout: Layout) -> Parcels:
    """Parcels: rows of rectangles within districts, some halved, every district turned its way."""
    district = stands(shape, rng, spacing=layout.district, warp=layout.district / 14)
    seed = int(rng.integers(2**31))
    bend = layout.district / 5
    rows, cols = (axis.astype(np.float32) for axis in np.indices(shape))
    rows = rows + 0.8 * smooth(shape, rng, sigma=bend)
    cols = cols + 0.8 * smooth(shape, rng, sigma=bend)
    angle = np.pi * uniform(seed, 1, district.number)
    across = cols * np.cos(angle) + rows * np.sin(angle)
    along = rows * np.cos(angle) - cols * np.sin(angle)
    width = _between(layout.width, uniform(seed, 2, district.number))
    column, edge_across = _cut(across, width, width * uniform(seed, 3, district.number))
    lane = mixed(seed, district.number, column)
    length = _between(layout.length, uniform(seed, 4, lane))
    place, edge_along = _cut(along, length, length * uniform(seed, 5, lane))
    cell = mixed(seed, lane, place)
    halved = uniform(seed, 6, cell) < layout.split
    # distance from the middle line along the row
    middle = np.abs(along + length * uniform(seed, 5, lane) - (place + 0.5) * length)
    upper = along + length * uniform(seed, 5, lane) > (place + 0.5) * length
    number = np.where(halved & upper, mixed(seed, cell, 7), cell)
    edge = np.minimum(np.minimum(edge_across, edge_along), district.edge)
    edge = np.where(halved, np.minimum(edge, middle), edge).astype(np.float32)
    parcel = Pieces(mixed(number, district.number), edge, along.astype(np.float32))
    return Parcels(parcel, district, across.astype(np.float32))


def _between(ends: tuple[float, float], share: Float32Array) -> Float32Array:
    """Between the two ends, small ones more often, as parcels are."""
    low, high = ends
    return (low * (high / low) ** share).astype(np.float32)


def _cut(
    place: Float32Array, step: Float32Array, offset: Float32Array
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int32]], Float32Array]:
    """Number of the interval of ``step`` that a coordinate lies in, and pixels to its end."""
    shifted = (place + offset) / step
    number = np.floor(shifted)
    share = shifted - number
    return number.astype(np.int32), (np.minimum(share, 1 - share) * step).astype(np.float32)
