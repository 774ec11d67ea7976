"""One state of a map store as cloud-optimised GeoTIFFs: a folder per shard, a VRT per zone.

```
INTO/release.json  INTO/landcover-<zone>.vrt  INTO/collection.json
INTO/<zone>/<row>-<column>/landcover.tif  .../confidence.tif  .../item.json
```
Row and column count the shards of the zone's arrays; the STAC files are made if asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac

from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.mapping import MapReader
from terrafine.progress import progress
from terrafine.publish.stac import item
from terrafine.publish.stac_collection import collection
from terrafine.publish.unfinished import unfinished
from terrafine.raster import Region, write_geotiff, write_vrt

# array -> dtype, number of what is not there
ARRAYS: Mapping[str, tuple[str, int]] = {
    "landcover": ("uint8", 255),
    "confidence": ("uint8", 255),
    "source": ("uint16", 0),
}
_COLLECTION = "collection.json"


@dataclass(frozen=True)
class _Export:
    store: MapReader
    name: str
    snapshot: str
    created: datetime
    arrays: tuple[str, ...]
    folder: Path

    def place(self, zone: str, shard: Window) -> Path:
        """The folder of a shard."""
        extent = self.store.window(zone)
        row, col = (shard.row - extent.row) // shard.height, (shard.col - extent.col) // shard.width
        return self.folder / zone / f"{row:04d}-{col:04d}"

    def write(self, zone: str, shard: Window) -> None:
        """A shard's GeoTIFFs, those that are not there yet."""
        for array in self.arrays:
            path = self.place(zone, shard) / f"{array}.tif"
            if path.exists():
                continue
            _, nodata = ARRAYS[array]
            array_HW = self.store.read(zone, shard, array, ref=self.snapshot)
            if array == "source":
                # never mapped and looked at without a scene are one here: neither has a scene
                array_HW = np.where(array_HW == 65535, 0, array_HW).astype(np.uint16)
            write_geotiff(
                path,
                array_HW,
                self.store.grid(zone),
                shard,
                nodata=nodata,
                legend=self.store.legend if array == "landcover" else None,
                tags={"RELEASE": self.name, "SNAPSHOT": self.snapshot},
                description=array,
            )

    def write_item(self, zone: str, shard: Window) -> pystac.Item:
        """The STAC item of a shard, linked to the collection."""
        place = self.place(zone, shard)
        identifier = f"{self.name}-{zone}-{place.name}"
        made = item(
            identifier=identifier,
            title=f"{self.name}, zone {zone}, shard {place.name}",
            created=self.created,
            grid=self.store.grid(zone),
            window=shard,
            legend=self.store.legend,
            files={array: place / f"{array}.tif" for array in self.arrays},
            folder=place,
            provenance={"release": self.name, "snapshot": self.snapshot},
        )
        made.collection_id = self.name
        for rel in ("root", "parent", "collection"):
            made.add_link(pystac.Link(rel, f"../../{_COLLECTION}", pystac.MediaType.JSON))
        _write_json(place / "item.json", _plain(made))
        return made


def export_cogs(
    store: MapReader,
    ref: str,
    into: Path,
    *,
    arrays: Sequence[str] = ("landcover", "confidence"),
    region: Region | None = None,
    stac: bool = False,
    workers: int = 1,
) -> int:
    """Write the shards that hold anything at ``ref`` (and touch ``region``); returns how many.

    Land cover has the legend's colours and names and overviews of the commonest class. The folder
    appears when it is whole; shards that a killed export has written are not written again. A
    worker holds one shard at a time (200 MB at 8192 pixels a side).
    MapStoreError for an unknown state, an unknown array, a folder that holds something, or nothing
    to write; RasterError from the disk.
    """
    unknown = set(arrays) - set(ARRAYS)
    if unknown or not arrays:
        raise MapStoreError(
            f"no array {', '.join(sorted(unknown)) or 'at all'} in a map; give {', '.join(ARRAYS)}"
        )
    snapshot = store.snapshot(ref)
    shards = _chosen(store, snapshot, region)
    if not shards:
        where = f" in {region.where}" if region else ""
        raise MapStoreError(f"{store.path}: nothing is mapped{where} at {ref!r}; nothing exported")
    chosen = json.dumps([(zone, s.row, s.col) for zone, s in shards])
    kind = "stac" if stac else "cog"
    with unfinished(into, kind, snapshot, ref, *arrays, chosen) as folder:
        export = _Export(store, ref, snapshot, store.written_at(snapshot), tuple(arrays), folder)
        with (
            ThreadPoolExecutor(workers) as pool,
            progress("export", total=len(shards), unit="shard") as task,
        ):
            for _ in pool.map(lambda key: export.write(*key), shards):
                task.advance()
        for zone in dict.fromkeys(zone for zone, _ in shards):
            _write_vrts(export, zone, [s for z, s in shards if z == zone])
        record = store.provenance(snapshot)
        _write_json(
            folder / "release.json",
            {
                "name": ref,
                "snapshot": snapshot,
                "written_at": export.created.isoformat(),
                "run": asdict(record) if record else None,
            },
        )
        if stac:
            _write_collection(export, shards)
    return len(shards)


def _chosen(store: MapReader, ref: str, region: Region | None) -> list[tuple[str, Window]]:
    chosen = []
    for zone in store.zones():
        shards, grid = sorted(store.written(zone, ref)), store.grid(zone)
        if region is not None:
            inside = region.touches(grid.crs, [grid.bounds(shard) for shard in shards])
            shards = [shard for shard, kept in zip(shards, inside, strict=True) if kept]
        chosen += [(zone, shard) for shard in shards]
    return chosen


def _write_vrts(export: _Export, zone: str, shards: Sequence[Window]) -> None:
    store = export.store
    around = shards[0]
    for shard in shards:
        around = around.union(shard)
    for array in export.arrays:
        dtype, nodata = ARRAYS[array]
        write_vrt(
            export.folder / f"{array}-{zone}.vrt",
            {shard: export.place(zone, shard) / f"{array}.tif" for shard in shards},
            store.grid(zone),
            around,
            dtype=dtype,
            nodata=nodata,
            legend=store.legend if array == "landcover" else None,
        )


def _write_collection(export: _Export, shards: Iterable[tuple[str, Window]]) -> None:
    made = collection(
        identifier=export.name,
        title=export.name,
        items=[export.write_item(*key) for key in shards],
        legend=export.store.legend,
    )
    for zone, shard in shards:
        place = export.place(zone, shard).relative_to(export.folder).as_posix()
        made.add_link(pystac.Link("item", f"./{place}/item.json", pystac.MediaType.GEOJSON))
    made.add_link(pystac.Link("root", f"./{_COLLECTION}", pystac.MediaType.JSON))
    _write_json(export.folder / _COLLECTION, _plain(made))


def _plain(made: pystac.Item | pystac.Collection) -> dict[str, Any]:
    return made.to_dict(include_self_link=False, transform_hrefs=False)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)
