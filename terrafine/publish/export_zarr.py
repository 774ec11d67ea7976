"""One state of a map store as plain Zarr v3, for tools that know no Icechunk.

The encoded shards are copied as they are, so every array has the bytes of the store; the groups
keep their attributes and get those of the Zarr convention for pyramids ("multiscales").
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from terrafine.mapping import MapReader
from terrafine.progress import progress
from terrafine.publish.unfinished import unfinished
from terrafine.storage import Storage

_METADATA = "zarr.json"
_MULTISCALES = {
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/multiscales/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/multiscales/blob/v1/README.md",
    "uuid": "d35379db-88df-4056-af3a-620245f8e347",
    "name": "multiscales",
    "description": "Multiscale layout of zarr datasets",
}


def export_zarr(store: MapReader, ref: str, into: Path, *, workers: int = 1) -> None:
    """Copy all zones, arrays and overviews at ``ref`` into the folder ``into``.

    The folder appears when it is whole; what a killed export has copied is not copied again.
    MapStoreError for an unknown state or a folder that holds something; StorageError from the disk.
    """
    snapshot = store.snapshot(ref)
    with unfinished(into, "zarr", snapshot) as partial:
        target = Storage.at(partial)
        there = set(target.names())
        source = store.zarr_store(snapshot)
        names = [n for n in sync(_listed(source.list())) if n not in there]
        with (
            ThreadPoolExecutor(workers) as pool,
            progress("export", total=len(names), unit="object") as task,
        ):

            def copy(name: str) -> None:
                found = sync(source.get(name, default_buffer_prototype()))
                assert found is not None, name
                target.write(name, found.to_bytes())

            for _ in pool.map(copy, names):
                task.advance()
        _describe(target, store, snapshot, release=ref)


def _describe(target: Storage, store: MapReader, snapshot: str, *, release: str) -> None:
    _add_attributes(target, _METADATA, {"release": {"name": release, "snapshot": snapshot}})
    for zone in store.zones():
        layout: list[dict[str, Any]] = [
            {"asset": "landcover", "transform": {"scale": [1.0, 1.0]}},
        ]
        last = 1
        for factor in store.overviews(zone, snapshot):
            finer = "landcover" if last == 1 else f"landcover_{last}"
            step = factor / last
            layout.append(
                {
                    "asset": f"landcover_{factor}",
                    "derived_from": finer,
                    "transform": {
                        "scale": [step, step],
                        # between the centres of the first pixels, in finer pixels
                        "translation": [(step - 1) / 2, (step - 1) / 2],
                    },
                }
            )
            last = factor
        _add_attributes(
            target,
            f"{zone}/{_METADATA}",
            {
                "zarr_conventions": [_MULTISCALES],
                "multiscales": {"layout": layout, "resampling_method": "mode"},
            },
        )


def _add_attributes(target: Storage, name: str, attributes: dict[str, Any]) -> None:
    stored = target.read(name)
    assert stored is not None, name
    described = json.loads(stored)
    described["attributes"] |= attributes
    target.write(name, json.dumps(described, indent=1).encode())


async def _listed(names: AsyncIterator[str]) -> list[str]:
    return [name async for name in names]
