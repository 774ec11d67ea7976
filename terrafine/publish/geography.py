"""Where a window lies on the Earth: its outline in WGS 84 and the area of its pixels."""

from __future__ import annotations

import itertools
import json
import math
from functools import lru_cache
from typing import Any

from pyproj import CRS, Geod, Transformer
from shapely import MultiPolygon, Polygon, affinity, box, to_geojson
from shapely.geometry import polygon

from terrafine.geometry import PixelGrid, Window

# Points per side of an outline: a straight edge in UTM is a curve in degrees.
_POINTS_PER_SIDE = 8

# Of a degree in an outline: about a centimetre.
_DECIMALS = 7

_METRES_PER_DEGREE = 111_320.0  # along the equator, WGS 84


def lon_lat(grid: PixelGrid, x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude (degrees, WGS 84) of a point in the grid's CRS units."""
    longitude, latitude = _to_wgs84(grid.crs).transform(x, y)
    return float(longitude), float(latitude)


def outline_wgs84(grid: PixelGrid, window: Window) -> dict[str, Any]:
    """The window as a GeoJSON geometry (RFC 7946: WGS 84, counter-clockwise).

    A window across the antimeridian becomes a MultiPolygon, as RFC 7946, section 3.1.9, asks.
    """
    shape = _outline(grid, window)
    east = shape.intersection(box(-180, -90, 180, 90))
    west = affinity.translate(shape.intersection(box(180, -90, 540, 90)), xoff=-360)
    parts = [polygon.orient(part) for part in (east, west) if part.area > 0]
    geometry: dict[str, Any] = json.loads(
        to_geojson(parts[0] if len(parts) == 1 else MultiPolygon(parts))
    )
    return geometry


def bbox_wgs84(grid: PixelGrid, window: Window) -> list[float]:
    """[west, south, east, north] in degrees; west > east where it crosses the antimeridian."""
    west, south, east, north = _outline(grid, window).bounds
    return [west, south, east - 360 if east > 180 else east, north]


def pixel_area_km2(grid: PixelGrid, window: Window) -> float:
    """Area of one pixel in km2.

    In a projected CRS the product of the pixel's sides (the projection's own distortion, below
    0.1 % in UTM, is left in); in a geographic CRS the geodesic area of the window's central pixel.
    """
    crs = CRS.from_user_input(grid.crs)
    if crs.is_projected:
        unit = float(crs.axis_info[0].unit_conversion_factor)
        return grid.dx * grid.dy * unit**2 / 1e6
    left, bottom, right, top = grid.bounds(
        Window(window.row + window.height // 2, window.col + window.width // 2, 1, 1)
    )
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(
        [left, right, right, left], [bottom, bottom, top, top]
    )
    return abs(float(area)) / 1e6


def pixel_width_metres(grid: PixelGrid, window: Window) -> float:
    """East-west size of a pixel in metres, in a geographic CRS at the window's middle latitude."""
    crs = CRS.from_user_input(grid.crs)
    if crs.is_projected:
        return grid.dx * float(crs.axis_info[0].unit_conversion_factor)
    _, bottom, _, top = grid.bounds(window)
    return grid.dx * _METRES_PER_DEGREE * math.cos(math.radians((bottom + top) / 2))


def unit_name(crs: str) -> str:
    """Unit of the CRS's coordinates: "metre", "US survey foot", "degree"."""
    return str(CRS.from_user_input(crs).axis_info[0].unit_name)


@lru_cache(maxsize=16)
def _to_wgs84(crs: str) -> Transformer:
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def _outline(grid: PixelGrid, window: Window) -> Polygon:
    """The window's densified edge in degrees; longitudes run on past 180 instead of jumping."""
    left, bottom, right, top = grid.bounds(window)
    corners = [(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]
    points: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        for step in range(_POINTS_PER_SIDE):
            part = step / _POINTS_PER_SIDE
            lon, lat = lon_lat(grid, x0 + part * (x1 - x0), y0 + part * (y1 - y0))
            points.append((round(lon, _DECIMALS), round(lat, _DECIMALS)))
    longitudes = [longitude for longitude, _ in points]
    if max(longitudes) - min(longitudes) > 180:
        points = [(lon + 360 if lon < 0 else lon, lat) for lon, lat in points]
    return Polygon(points)
