"""A map store of two overlapping UTM zones, and the viewer's server in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from aiohttp import web
from pyproj import Transformer

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import UInt8Array
from terrafine.mapping import MapReader
from terrafine.view import Atlas, make_site
from terrafine.view.mercator import Tile
from tests.map_stores import SHARD, ZONES, random_map

# Where both zones meet: longitude 120, in pixels of 3 m, cut to whole shards.
LONGITUDE, LATITUDE = 120.0, 32.0


def window_at(zone: str, lon: float, lat: float, side: int, shard: int = SHARD) -> Window:
    """A window of whole shards around a point."""
    grid = ZONES[zone]
    x, y = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform(lon, lat)
    row, col = grid.pixel_of(x, y)
    return Window(
        (row - side // 2) // shard * shard, (col - side // 2) // shard * shard, side, side
    )


def two_zones(side: int = 128, patch: int = 16) -> dict[str, tuple[Window, UInt8Array]]:
    """A map per zone, overlapping by half."""
    maps = {}
    for number, (zone, off) in enumerate((("epsg32650", -0.001), ("epsg32651", 0.001))):
        window = window_at(zone, LONGITUDE + off, LATITUDE, side)
        maps[zone] = window, random_map(number, (side, side), patch=patch)
    return maps


def tile_over(lon: float, lat: float, z: int) -> Tile:
    """The tile of a level that holds a point."""
    side = 2**z
    y = (1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2
    return Tile(z, int((lon + 180) / 360 * side), int(y * side))


def centres(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes (H, W) of a tile's pixel centres, by the definition of the tiles."""
    at = (np.arange(256) + 0.5) / 256
    lon = (tile.x + at) / 2**tile.z * 360 - 180
    lat = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * (tile.y + at) / 2**tile.z))))
    shape = 256, 256
    return np.broadcast_to(lon, shape), np.broadcast_to(lat[:, None], shape)


def pixels_under(
    tile: Tile, grid: PixelGrid, window: Window, codes: np.ndarray, fill: int
) -> np.ndarray:
    """(H, W) the values that the tile's pixel centres fall into, one by one through PROJ."""
    to = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    x, y = to.transform(*centres(tile))
    rows = np.floor((grid.y0 - y) / grid.dy).astype(int) - window.row
    cols = np.floor((x - grid.x0) / grid.dx).astype(int) - window.col
    inside = (rows >= 0) & (cols >= 0) & (rows < window.height) & (cols < window.width)
    found = codes[rows.clip(0, window.height - 1), cols.clip(0, window.width - 1)]
    return np.where(inside, found, fill)


def codes_under(tile: Tile, maps: Mapping[str, tuple[Window, UInt8Array]]) -> np.ndarray:
    """(H, W) what a tile must show: the first zone that has a class, else 0, else 255."""
    shown = np.full((256, 256), 255)
    for zone, (window, codes_HW) in maps.items():
        found = pixels_under(tile, ZONES[zone], window, codes_HW, 255)
        shown = np.where(np.isin(shown, (0, 255)) & (found != 255), found, shown)
    return shown


@contextmanager
def served(atlas: Atlas, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a viewer that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = web.AppRunner(make_site(atlas, host=host), handler_cancellation=True)

    async def begin() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
        await site.start()
        return int(runner.addresses[0][1])

    try:
        port = asyncio.run_coroutine_threadsafe(begin(), loop).result(20)
        yield f"http://127.0.0.1:{port}/"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def atlas_of(path: Path) -> Atlas:
    """A viewer's contents, of a store alone."""
    return Atlas(MapReader(path))
