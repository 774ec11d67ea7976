"""Map stores with a map in them that a test has made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import shapely

from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN, UInt8Array
from terrafine.mapping import MapStore, Plan, ShardResult
from terrafine.mapping.place import MAIN
from terrafine.raster import Region

SHARD = 64
ZONES = {
    "epsg32650": PixelGrid("EPSG:32650", 3.0, 3.0, 1.5, 0.75),
    "epsg32651": PixelGrid("EPSG:32651", 3.0, 3.0, 0.0, 0.0),
}


Maps = Mapping[str, tuple[Window, UInt8Array]]


def write_run(path: Path, name: str, maps: Maps, *, shard: int = SHARD) -> tuple[MapStore, str]:
    """Write a map per zone (window of whole shards, codes; 255: not mapped); returns its run.

    Confidence is the code plus 50; the source is scene 1 where there is a class. Again under the
    same name, what the first map did not have is added.
    """
    plans = [
        Plan(zone, ZONES[zone], window, shard, mapped(window, codes_HW, shard))
        for zone, (window, codes_HW) in maps.items()
    ]
    store = MapStore.open_for(path, plans, SEVEN)
    with store.run(plans, model="m" * 64, spec=name, scenes=["north"], mapping={}) as run:
        for zone, place in run.todo():
            window, codes_HW = maps[zone]
            part_HW = codes_HW[place.slices(window)]
            source_HW = (part_HW > 0).astype(np.uint16)
            run.accept(run.target.write(zone, ShardResult(place, part_HW, part_HW + 50, source_HW)))
        run.commit()
    return store, run.name


def release_maps(path: Path, name: str, maps: Maps, *, shard: int = SHARD) -> MapStore:
    """Write a run and release it under its name."""
    store, run = write_run(path, name, maps, shard=shard)
    store.release(name, run)
    return store


def region_of(grid: PixelGrid, *windows: Window) -> Region:
    """The windows' ground, in degrees."""
    boxes = [shapely.box(*grid.bounds(window)) for window in windows]
    outline = geopandas.GeoSeries(boxes, crs=grid.crs).segmentize(30).to_crs(4326).union_all()
    return Region(outline, "region.gpkg")


def mapped(window: Window, codes_HW: UInt8Array, shard: int) -> tuple[Window, ...]:
    """The shards that hold anything."""
    shards = window.tiles(shard)
    return tuple(s for s in shards if (codes_HW[s.slices(window)] != 255).any())


@dataclass
class Watched(MapStore):
    """A store that writes down which windows are read from it, and fails at ``broken``."""

    path: Path
    broken: Window | None = None
    seen: list[Window] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.path)

    def read(
        self, zone: str, window: Window, array: str = "landcover", ref: str = MAIN
    ) -> npt.NDArray[Any]:
        self.seen.append(window)
        if window == self.broken:
            raise MapStoreError("the disk is gone")
        return super().read(zone, window, array, ref)


def random_map(seed: int, shape: tuple[int, int], *, patch: int = 8) -> UInt8Array:
    """Patches of classes and of no class (0), and single pixels of them."""
    rng = np.random.default_rng(seed)
    height, width = shape
    coarse = rng.integers(0, 8, (height // patch, width // patch))
    codes_HW = np.kron(coarse, np.ones((patch, patch))).astype(np.uint8)
    noise = rng.random(shape) < 0.1
    codes_HW[noise] = rng.integers(0, 8, int(noise.sum()))
    return codes_HW
