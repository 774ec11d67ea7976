"""The web server behind ``terrafine view``: a page, tiles, and answers about a pixel.

It only reads. A tile's address names the snapshot it shows, so that a browser may keep it, and a
growing run is seen by asking for the newest snapshot.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from terrafine.errors import MapStoreError, TerrafineError
from terrafine.view.atlas import Atlas
from terrafine.view.mercator import Tile

WEB = Path(str(files("terrafine.view") / "web"))
LEAFLET = Path(str(files("xstatic.pkg.leaflet") / "data"))

# A tile is a second of work at worst, and most of it is done without Python's lock.
_THREADS = 4

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
T = TypeVar("T")


def make_site(atlas: Atlas, *, host: str) -> web.Application:
    """The web application. ``host``: the address that it will listen on."""
    site = _Site(atlas)
    app = web.Application(middlewares=[_only_from(host), _errors])
    app.router.add_get("/", site.page)
    app.router.add_get("/api/store", site.store)
    app.router.add_get("/api/state", site.state)
    app.router.add_get("/api/pixel", site.pixel)
    app.router.add_get(r"/tiles/{layer:[a-z]+}/{z:\d{1,2}}/{x:\d{1,8}}/{y:\d{1,8}}", site.tile)
    app.router.add_static("/web", WEB)
    app.router.add_static("/leaflet", LEAFLET)
    app.on_response_prepare.append(_add_headers)
    app.on_cleanup.append(site.close)
    return app


class _Site:
    """The handlers; the work is done by threads."""

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas
        # a question is not to wait for a screenful of tiles
        self._painters, self._clerks = (ThreadPoolExecutor(_THREADS) for _ in range(2))

    async def page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(WEB / "index.html")

    async def store(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._do(self._atlas.describe))

    async def state(self, request: web.Request) -> web.StreamResponse:
        ref = request.query.get("ref") or None
        return _json(await self._do(lambda: self._atlas.state(ref)))

    async def pixel(self, request: web.Request) -> web.StreamResponse:
        try:
            lon, lat = (float(request.query[name]) for name in ("lon", "lat"))
        except (KeyError, ValueError) as error:
            raise web.HTTPBadRequest(text="lon and lat: degrees") from error
        at = request.query.get("at", "")
        return _json(await self._do(lambda: self._atlas.pixel(at, lon, lat)))

    async def tile(self, request: web.Request) -> web.StreamResponse:
        layer = request.match_info["layer"]
        tile = Tile(*(int(request.match_info[name]) for name in ("z", "x", "y")))
        snapshot, only = request.query.get("at", ""), request.query.get("only", "")
        codes = frozenset(int(code) for code in only.split(",") if code.isdecimal())
        if not tile.exists or layer not in self._atlas.layers:
            raise web.HTTPNotFound(text="no such tile")
        png = await self._do(lambda: self._atlas.tile(layer, tile, snapshot, codes), self._painters)
        forever = {"Cache-Control": "private, max-age=604800, immutable"}
        return web.Response(body=png, content_type="image/png", headers=forever)

    async def close(self, app: web.Application) -> None:
        for threads in (self._painters, self._clerks):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _do(self, work: Callable[[], T], threads: ThreadPoolExecutor | None = None) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads or self._clerks, work)


def _json(value: Any) -> web.Response:
    return web.Response(
        text=json.dumps(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _only_from(host: str) -> Middleware:
    """Refuse what other sites' pages ask for by a name that they have pointed at this machine."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = (request.url.host or "").lower()
        if _is_local(host) and not _is_local(asked):
            raise web.HTTPForbidden(text=f"this server is not {asked!r}")
        return await handler(request)

    return check


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TerrafineError as error:
        missing = isinstance(error, MapStoreError)
        return web.json_response({"error": str(error)}, status=404 if missing else 500)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
