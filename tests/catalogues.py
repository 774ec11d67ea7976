"""Scenes of 3-m pixels in files, and catalogues of them in every form that is read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import geopandas
import numpy as np
import pyproj
import shapely
from affine import Affine

from tests.scenes import CRS, TRANSFORM, write_raster

SIDE = 20


@dataclass(frozen=True)
class Listed:
    """One scene: two bands of ``value`` and ``value + 1``, ``right`` and ``down`` pixels from the
    first, and what a catalogue says of it."""

    name: str
    value: int
    right: float = 0
    down: float = 0
    crs: str = CRS
    day: str = "2020-06-01"
    cloud: float = 0
    priority: int = 0
    missing: Any = None
    nodata: int = 0
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def transform(self) -> Affine:
        return TRANSFORM @ Affine.translation(self.right, self.down)

    @property
    def file(self) -> str:
        """Its name holds its day, as every sensor's files do."""
        return f"scenes/{self.name}_{self.day.replace('-', '')}.tif"

    @property
    def footprint(self) -> shapely.Polygon:
        """In degrees."""
        (left, top), (right, bottom) = self.transform @ (0, 0), self.transform @ (SIDE, SIDE)
        box = shapely.segmentize(shapely.box(left, bottom, right, top), 10)
        back = pyproj.Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)
        return shapely.transform(box, lambda xy: np.column_stack(back.transform(*xy.T)))

    def write(self, root: Path, **changes: Any) -> None:
        image_CHW = np.full((2, SIDE, SIDE), self.value, np.uint16)
        image_CHW[1] += 1
        if self.missing is not None:
            image_CHW[:, *self.missing] = self.nodata
        (root / "scenes").mkdir(exist_ok=True)
        profile = {"nodata": self.nodata, "crs": self.crs, "transform": self.transform, **changes}
        write_raster(root / self.file, image_CHW, **profile)

    @property
    def pixels(self) -> dict[str, Any]:
        """What STAC's projection extension says."""
        return {
            "proj:code": self.crs,
            "proj:transform": list(self.transform)[:6],
            "proj:shape": [SIDE, SIDE],
        }

    @property
    def properties(self) -> dict[str, Any]:
        return {
            "datetime": f"{self.day}T03:00:00Z",
            "eo:cloud_cover": self.cloud,
            "priority": self.priority,
            **self.pixels,
            **self.said,
        }

    def item(self, base: str = "") -> dict[str, Any]:
        """As a STAC item; a property that is None is left out."""
        properties = {k: v for k, v in self.properties.items() if v is not None}
        return {
            "type": "Feature",
            "stac_version": "1.1.0",
            "id": self.name,
            "geometry": json.loads(shapely.to_geojson(self.footprint)),
            "bbox": list(self.footprint.bounds),
            "properties": properties,
            "links": [],
            "assets": {
                "image": {"href": f"{base}{self.file}", "roles": ["data"]},
                "thumbnail": {"href": "small.png", "roles": ["thumbnail"], "type": "image/png"},
            },
        }


def write_items(root: Path, scenes: list[Listed]) -> str:
    """An item collection."""
    items = {"type": "FeatureCollection", "features": [scene.item() for scene in scenes]}
    (root / "items.json").write_text(json.dumps(items))
    return "items.json"


def write_collection(root: Path, scenes: list[Listed]) -> str:
    """A STAC collection whose items are files in a folder of their own."""
    (root / "stac").mkdir()
    links = []
    for scene in scenes:
        (root / "stac" / f"{scene.name}.json").write_text(json.dumps(scene.item("../")))
        links.append({"rel": "item", "href": f"./stac/{scene.name}.json"})
    (root / "collection.json").write_text(json.dumps({"type": "Collection", "links": links}))
    return "collection.json"


def write_table(root: Path, scenes: list[Listed]) -> str:
    """A GeoParquet with one file column."""
    rows = [
        {"id": s.name, "file": s.file, **{k: v for k, v in s.properties.items() if v is not None}}
        for s in scenes
    ]
    frame = geopandas.GeoDataFrame(rows, geometry=[s.footprint for s in scenes], crs="EPSG:4326")
    frame.to_parquet(root / "scenes.parquet", index=False)
    return "scenes.parquet"


class _Api(BaseHTTPRequestHandler):
    """A STAC API with one collection, two items a page, which honours ``datetime``; it refuses
    every first request of a page, as an overloaded one does, and its first answer is cut off."""

    def __init__(self, scenes: list[Listed], base: str, asked: list[str], *args: Any) -> None:
        self.scenes, self.base, self.asked = scenes, base, asked
        super().__init__(*args)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.asked.count(self.path) == 1 and "/items" in self.path:
            self.send_error(503)
            return
        host = f"http://{self.headers['Host']}"
        url = urlsplit(self.path)
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        if url.path == "/collections/fine":
            links = [{"rel": "items", "href": f"{host}/collections/fine/items"}]
            self._answer({"type": "Collection", "id": "fine", "links": links})
        elif url.path == "/collections/fine/items":
            self._answer(self._page(host, query))
        else:
            links = [{"rel": "search", "href": f"{host}/search"}]
            self._answer({"type": "Catalog", "links": links})

    def _page(self, host: str, query: dict[str, str]) -> dict[str, Any]:
        first, _, last = query.get("datetime", "1900/2100").partition("/")
        start = int(query.get("token", 0))
        found = [s for s in self.scenes if first <= f"{s.day}T03:00:00Z" <= last]
        links = []
        if start + 2 < len(found):
            kept = "&".join(f"{k}={v}" for k, v in query.items() if k != "token")
            links = [{"rel": "next", "href": f"/collections/fine/items?{kept}&token={start + 2}"}]
        items = [scene.item(self.base) for scene in found[start : start + 2]]
        return {"type": "FeatureCollection", "features": items, "links": links}

    def _answer(self, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if len(self.asked) > 1 else data[:-10])

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@contextmanager
def stac_api(scenes: list[Listed], base: str) -> Iterator[tuple[str, list[str]]]:
    """URL of a collection in an API whose assets lie under ``base``, and what it is asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Api, scenes, base, asked))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/collections/fine", asked
    server.shutdown()
    server.server_close()
    thread.join()
