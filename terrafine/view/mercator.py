"""Map tiles: the web-mercator pyramid that every web map asks for, as windows of pixel grids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import morecantile
from pyproj import Transformer

from terrafine.geometry import PixelGrid, Window
from terrafine.publish.geography import bbox_wgs84

TILE = 256
_PYRAMID = morecantile.tms.get("WebMercatorQuad")
_METRES = _PYRAMID.matrix(0).cellSize

# Zoomed in beyond the pixels: two levels for the eye, so that a pixel is a clear square.
_BEYOND = 2


@dataclass(frozen=True)
class Tile:
    """One tile of the pyramid."""

    z: int
    x: int
    y: int

    @property
    def exists(self) -> bool:
        """Whether the pyramid has it."""
        return self.z <= _PYRAMID.maxzoom and _PYRAMID.is_valid(self._address)

    @cached_property
    def grid(self) -> PixelGrid:
        """The pixels of its level; number 0 lies at longitude 0 on the equator."""
        size = _PYRAMID.matrix(self.z).cellSize
        return PixelGrid("EPSG:3857", size, size, 0.0, 0.0)

    @property
    def window(self) -> Window:
        """Its pixels on :attr:`grid`."""
        half = TILE * 2**self.z // 2
        return Window(self.y * TILE - half, self.x * TILE - half, TILE, TILE)

    @cached_property
    def lonlat(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees."""
        west, south, east, north = _PYRAMID.bounds(self._address)
        return west, south, east, north

    @property
    def _address(self) -> morecantile.Tile:
        return morecantile.Tile(self.x, self.y, self.z)


@dataclass(frozen=True)
class Place:
    """Where the pixels of one grid lie, as tiles ask for it."""

    grid: PixelGrid
    extent: Window

    @cached_property
    def lonlat(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees; east is above 180 across the antimeridian."""
        west, south, east, north = bbox_wgs84(self.grid, self.extent)
        return west, south, east + 360 if east < west else east, north

    def under(self, tile: Tile) -> Window | None:
        """The pixels that may be seen in a tile, or None."""
        west, south, east, north = self.lonlat
        left, bottom, right, top = tile.lonlat
        if east > 180 and right <= west:
            left, right = left + 360, right + 360
        # a projection need not know the far side of the Earth, of which a coarse tile shows a part
        left, bottom = max(left, west), max(bottom, south)
        right, top = min(right, east), min(top, north)
        if left >= right or bottom >= top:
            return None
        bounds = _from_lonlat(self.grid.crs).transform_bounds(left, bottom, right, top)
        row, col = self.grid.pixel_of(bounds[0], bounds[3])
        stop_row, stop_col = self.grid.pixel_of(bounds[2], bounds[1])
        seen = Window(row, col, stop_row - row + 1, stop_col - col + 1)
        return seen.buffered(2).intersection(self.extent)

    def pixel_at(self, longitude: float, latitude: float) -> tuple[int, int] | None:
        """Global (row, column) of the pixel that holds a point, None outside."""
        x, y = _from_lonlat(self.grid.crs).transform(longitude, latitude)
        if not (math.isfinite(x) and math.isfinite(y)):
            return None
        row, col = self.grid.pixel_of(x, y)
        inside = Window(row, col, 1, 1).intersection(self.extent)
        return None if inside is None else (row, col)

    @cached_property
    def metres(self) -> float:
        """Web-mercator metres that a pixel is wide and high, about."""
        _, south, _, north = self.lonlat
        bottom, top = (_PYRAMID.xy(0.0, latitude).y for latitude in (south, north))
        return float(top - bottom) / self.extent.height

    def coarseness(self, zoom: int) -> float:
        """How many pixels a tile's pixel at a zoom level is wide."""
        return math.ldexp(_METRES, -zoom) / self.metres

    def zoom_for(self, coarseness: float) -> int:
        """The lowest zoom level whose tiles are not coarser than this."""
        return max(0, math.ceil(math.log2(_METRES / self.metres / coarseness)))

    @property
    def native_zoom(self) -> int:
        """The zoom level beyond which tiles show nothing new."""
        return min(self.zoom_for(1) + _BEYOND, _PYRAMID.maxzoom)


@lru_cache(maxsize=64)
def _from_lonlat(crs: str) -> Transformer:
    return Transformer.from_crs("EPSG:4326", crs, always_xy=True)
