"""All that the viewer shows of one map store: its states, tiles and pixels, ready to be sent."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from terrafine.errors import MapStoreError, RasterError
from terrafine.geometry import Window
from terrafine.legend import NO_CLASS, UNWRITTEN, UInt8Array
from terrafine.mapping import Explanation, MapReader, Release
from terrafine.mapping.place import MAIN
from terrafine.publish.figures import class_palette, confidence_palette, palette_png, rgba_png
from terrafine.publish.geography import outline_wgs84
from terrafine.view.backdrop import Imagery, Product
from terrafine.view.history import History
from terrafine.view.maps import DONE, LAYERS, PLANNED, MapPixels
from terrafine.view.mercator import Place, Tile

# RGBA: looked at but no class; shards that are only shown as done, or still to do
_NO_CLASS, _DONE, _PLANNED = (118, 126, 136, 70), (52, 98, 160, 170), (120, 138, 160, 60)

# What is not picked in the legend stays to be guessed.
_DIMMED = 26

# Tiles and states of the store that are kept in memory (a tile is some ten kilobytes), and shards
# of a wave that are outlined.
_TILES, _STATES, _OUTLINED = 4096, 8, 64

_RAMP_STEP = 10


class Atlas:
    """A map store for the eye, with the imagery and the product that its map was made from.

    ``start``: the release or run that is shown at first, by default the current release or the
    newest run; MapStoreError when it is not there.
    """

    def __init__(
        self,
        reader: MapReader,
        *,
        imagery: Imagery | None = None,
        product: Product | None = None,
        start: str | None = None,
    ) -> None:
        self._reader, self._imagery, self._product = reader, imagery, product
        self._start = start
        if start is not None:
            reader.snapshot(start)
        self._names = {item.code: (item.name, item.color) for item in reader.legend.classes}
        self._places = {z: Place(reader.grid(z), reader.window(z)) for z in reader.zones()}
        history = History(reader)
        self._progress = lru_cache(_STATES)(history.progress)
        self._pixels = lru_cache(_STATES)(lambda at: MapPixels(reader, history, at))
        self.tile = lru_cache(_TILES)(self._tile)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers."""
        product = ("product",) if self._product else ()
        looks = tuple(self._imagery.looks) if self._imagery else ()
        return (*LAYERS, *product, *looks)

    def describe(self) -> dict[str, Any]:
        """What does not change: legend, layers, and how far they are worth zooming."""
        legend = self._reader.legend
        fine_from = {"product": self._product.fine_from} if self._product else {}
        if self._imagery:
            fine_from |= dict.fromkeys(self._imagery.looks, self._imagery.fine_from)
        ramp = confidence_palette()[0:101:_RAMP_STEP, :3].tolist()
        return {
            "name": _name(self._reader),
            "legend": legend.name,
            "classes": [item.model_dump(mode="json") for item in legend.classes],
            "ramp": [f"rgb({red}, {green}, {blue})" for red, green, blue in ramp],
            "layers": self.layers,
            "native_zoom": max(place.native_zoom for place in self._places.values()),
            "fine_from": fine_from,
        }

    def state(self, ref: str | None) -> dict[str, Any]:
        """What ``ref`` shows now, and how far its run is."""
        states = self._states()
        newest = [state["ref"] for state in states]
        current = [state["ref"] for state in states if state["current"]]
        ref = ref or self._start or next(iter(current + newest), MAIN)
        snapshot = self._reader.snapshot(ref)
        record, progress = self._reader.provenance(snapshot), self._progress(snapshot)
        growing = progress.done < progress.planned
        return {
            "states": states,
            "ref": ref,
            "snapshot": snapshot,
            "run": record and record.run,
            "model": record and record.model,
            "scenes": len(record.scenes) if record else 0,
            "base": record and record.base,
            "planned": progress.planned,
            "done": progress.done,
            "last_commit": progress.last_commit.isoformat(),
            "per_minute": progress.per_minute,
            "latest": [
                outline_wgs84(self._reader.grid(zone), shard)
                for zone, shard in progress.latest[:_OUTLINED]
                if growing
            ],
            "bounds": self._bounds(snapshot),
            "fine_from": {layer: self._pixels(snapshot).fine_from(layer) for layer in LAYERS},
        }

    def pixel(self, ref: str, longitude: float, latitude: float) -> dict[str, Any] | None:
        """Why the pixel at a point is what it is; None outside of every zone."""
        found = []
        for zone, place in self._places.items():
            at = place.pixel_at(longitude, latitude)
            if at is not None:
                found.append((zone, at, self._reader.explain(zone, *at, ref=ref)))
        # as in tiles: the first zone that has a class, else one that was looked at
        found.sort(key=lambda item: (item[2].landcover not in self._names, item[2].landcover))
        return self._told(*found[0]) if found else None

    def _told(self, zone: str, at: tuple[int, int], why: Explanation) -> dict[str, Any]:
        grid, pixel, record = self._reader.grid(zone), Window(*at, 1, 1), why.record
        left, bottom, right, top = grid.bounds(pixel)
        return {
            **self._class_of(why.landcover),
            "confidence": why.confidence if why.landcover in self._names else None,
            "scene": why.scene,
            "model": record and record.model,
            "run": record and record.run,
            "releases": [r.name for r in self._releases() if record and r.record.run == record.run],
            "written_at": why.written_at and why.written_at.isoformat(),
            "crs": grid.crs,
            "x": (left + right) / 2,
            "y": (bottom + top) / 2,
            "row": at[0],
            "col": at[1],
            "outline": outline_wgs84(grid, pixel),
            **self._behind(zone, pixel),
        }

    def _behind(self, zone: str, pixel: Window) -> dict[str, Any]:
        """The product's class and the sensor's numbers, where they are known and can be read."""
        found: dict[str, Any] = {}
        try:
            if self._product:
                code = int(self._product.raster.read(self._reader.grid(zone), pixel)[0, 0])
                found["product"] = self._class_of(code)
            if self._imagery:
                found["values"] = self._imagery.values(zone, pixel)
        except RasterError as error:
            found["error"] = str(error)
        return found

    def _class_of(self, code: int) -> dict[str, Any]:
        none = "not mapped" if code == UNWRITTEN else "no class"
        name, color = self._names.get(code, (none, None))
        return {"class": name, "color": color}

    def _tile(self, layer: str, tile: Tile, snapshot: str, only: frozenset[int]) -> bytes:
        """PNG bytes of 256 x 256 pixels. ``only``: the classes that are shown in full, all where it
        is empty. MapStoreError when the store has no such layer or snapshot."""
        if self._imagery and layer in self._imagery.looks:
            return rgba_png(self._imagery.tile(layer, tile))
        palette = self._palette(layer, only)
        if self._product and layer == "product":
            return palette_png(self._product.tile(tile), palette, optimize=False)
        if layer not in LAYERS:
            raise MapStoreError(f"{self._reader.path}: no layer {layer!r}")
        pixels = self._pixels(snapshot).tile(layer, tile)
        # two values that nothing else has are free to mean shards
        free = [code for code in range(NO_CLASS + 1, UNWRITTEN) if palette[code, 3] == 0]
        codes_HW = pixels.values_HW.copy()
        for meaning, code, color in ((DONE, free[-1], _DONE), (PLANNED, free[-2], _PLANNED)):
            codes_HW[pixels.shards_HW == meaning] = code
            palette[code] = color
        return palette_png(codes_HW, palette, optimize=False)

    def _palette(self, layer: str, only: frozenset[int]) -> UInt8Array:
        if layer == "confidence":
            return confidence_palette()
        palette = class_palette(self._reader.legend)
        if only:
            palette[[code for code in self._names if code not in only], 3] = _DIMMED
        if layer == "map":
            palette[NO_CLASS] = _NO_CLASS
        return palette

    def _states(self) -> list[dict[str, Any]]:
        """Releases, newest first, then runs, newest first."""
        releases = [
            {"ref": r.name, "kind": "release", "at": r.written_at.isoformat(), "current": r.current}
            for r in reversed(self._releases())
        ]
        runs = sorted(((self._reader.written_at(r), r) for r in self._reader.runs()), reverse=True)
        return releases + [
            {"ref": run, "kind": "run", "at": at.isoformat(), "current": False} for at, run in runs
        ]

    def _releases(self) -> list[Release]:
        return self._reader.releases()

    def _bounds(self, snapshot: str) -> list[float] | None:
        """[west, south, east, north] of all that is mapped or planned; None where nothing is."""
        planned = self._reader.planned(snapshot)
        boxes = []
        for zone, place in self._places.items():
            shards = self._reader.written(zone, snapshot) | {s for z, s in planned if z == zone}
            if shards:
                around = next(iter(shards))
                for shard in shards:
                    around = around.union(shard)
                boxes.append(Place(place.grid, around).lonlat)
        if not boxes:
            return None
        west, south = (min(box[i] for box in boxes) for i in (0, 1))
        east, north = (max(box[i] for box in boxes) for i in (2, 3))
        return [west, south, east, north]


def _name(reader: MapReader) -> str:
    """What a person calls the store: its folder or, where all are called alike, the one above."""
    path = Path(str(reader.path).rpartition("://")[2].rstrip("/")).absolute()
    return path.parent.name if path.stem == "map" and path.parent.name else path.stem
