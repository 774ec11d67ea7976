"""Pixel grids and windows: the arithmetic of where a pixel lies. No I/O.

A :class:`PixelGrid` numbers the pixels of one CRS from one fixed origin, so that chips, windows,
CLAHE blocks and shards cut from different scenes, runs or extents fall on the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from affine import Affine

from terrafine.errors import RasterError

# Two scenes share a grid when their pixels coincide to this share of a pixel.
ALIGNMENT_TOLERANCE = 0.01


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of global pixel numbers: rows grow southwards, columns eastwards."""

    row: int
    col: int
    height: int
    width: int

    @property
    def stop_row(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def stop_col(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def buffered(self, pixels: int) -> Window:
        """The window grown by ``pixels`` on every side."""
        return Window(
            self.row - pixels, self.col - pixels, self.height + 2 * pixels, self.width + 2 * pixels
        )

    def intersection(self, other: Window) -> Window | None:
        """The common part, or None."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.stop_row, other.stop_row) - row
        width = min(self.stop_col, other.stop_col) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None

    def union(self, other: Window) -> Window:
        """The smallest window around both."""
        row, col = min(self.row, other.row), min(self.col, other.col)
        return Window(
            row,
            col,
            max(self.stop_row, other.stop_row) - row,
            max(self.stop_col, other.stop_col) - col,
        )

    def slices(self, within: Window) -> tuple[slice, slice]:
        """Row and column slices of this window in an array that covers ``within``."""
        row, col = self.row - within.row, self.col - within.col
        return slice(row, row + self.height), slice(col, col + self.width)

    def snapped(self, size: int) -> Window:
        """Grown outwards to multiples of ``size``."""
        row, col = self.row // size * size, self.col // size * size
        return Window(
            row, col, -(-self.stop_row // size) * size - row, -(-self.stop_col // size) * size - col
        )

    def is_aligned(self, size: int) -> bool:
        """Whether all four edges lie on multiples of ``size``."""
        return self == self.snapped(size)

    def tiles(self, size: int) -> Iterator[Window]:
        """The tiles of ``size`` on the global grid that touch the window, row by row."""
        around = self.snapped(size)
        for row in range(around.row, around.stop_row, size):
            for col in range(around.col, around.stop_col, size):
                yield Window(row, col, size, size)


@dataclass(frozen=True)
class PixelGrid:
    """North-up pixels of one CRS. Pixel (0, 0) has its upper-left corner at (x0, y0).

    ``crs``: authority string ("EPSG:32650") or WKT. ``dx``, ``dy``: pixel size in CRS units, both
    positive. ``x0`` in [0, dx) and ``y0`` in [0, dy): the origin is the corner nearest to the
    CRS's own, so that every scene on the same lines has the same grid.
    """

    crs: str
    dx: float
    dy: float
    x0: float
    y0: float

    @classmethod
    def from_transform(cls, crs: str, transform: Affine, *, where: str) -> PixelGrid:
        """The grid a north-up raster lies on. RasterError when it is rotated or south-up."""
        if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
            raise RasterError(
                f"{where}: the raster is rotated or not north-up (transform {transform[:6]}); "
                "warp it to a north-up grid first, for example with gdalwarp"
            )
        dx, dy = transform.a, -transform.e
        return cls(crs, dx, dy, _phase(transform.c, dx), _phase(transform.f, dy))

    def window(self, transform: Affine, shape: tuple[int, int], *, where: str) -> Window:
        """Global pixel numbers of a raster; RasterError when it is not on this grid."""
        same_size = math.isclose(transform.a, self.dx, rel_tol=1e-9) and math.isclose(
            -transform.e, self.dy, rel_tol=1e-9
        )
        col, row = (transform.c - self.x0) / self.dx, (self.y0 - transform.f) / self.dy
        off = max(abs(col - round(col)), abs(row - round(row)))
        if not same_size or off > ALIGNMENT_TOLERANCE:
            raise RasterError(
                f"{where}: its pixels ({transform.a:g} x {-transform.e:g}, corner "
                f"{transform.c:.3f} {transform.f:.3f}) do not lie on the grid of the "
                f"other scenes in {self.crs} ({self.dx:g} x {self.dy:g}, {off:.2f} pixels "
                "off); warp it onto that grid"
            )
        return Window(round(row), round(col), *shape)

    def transform(self, window: Window) -> Affine:
        """Affine transform of an array that covers ``window``."""
        return Affine(
            self.dx,
            0.0,
            self.x0 + window.col * self.dx,
            0.0,
            -self.dy,
            self.y0 - window.row * self.dy,
        )

    def bounds(self, window: Window) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in CRS units."""
        t = self.transform(window)
        return t.c, t.f + window.height * t.e, t.c + window.width * t.a, t.f

    def pixel_of(self, x: float, y: float) -> tuple[int, int]:
        """Global (row, column) of the pixel that holds a point given in CRS units."""
        return math.floor((self.y0 - y) / self.dy), math.floor((x - self.x0) / self.dx)


def _phase(value: float, step: float) -> float:
    """``value`` modulo ``step``, with a rounding error below a millionth of a step taken as 0."""
    phase = value % step
    return 0.0 if min(phase, step - phase) < 1e-6 * step else phase


def zone_name(crs: str) -> str:
    """Name of the map store's group for a CRS: "EPSG:32650" -> "epsg32650"."""
    slug = "".join(c for c in crs.lower() if c.isalnum())
    if not crs.upper().startswith("EPSG:"):
        raise RasterError(
            f"CRS {crs[:60]!r} has no EPSG code, which names the zone in the map store; "
            "set imagery.crs to the EPSG code that is meant"
        )
    return slug
