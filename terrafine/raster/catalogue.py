"""Catalogues: which scenes there are, where they lie and which is on top, without opening them."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from affine import Affine
from shapely.geometry.base import BaseGeometry

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid
from terrafine.raster.catalogue_sources import (
    Record,
    folder_records,
    is_folder,
    linked,
    source_place,
    stac_records,
    table_records,
    understood,
)
from terrafine.raster.files import Place
from terrafine.raster.region import Bounds, Region, checked_crs, transformer
from terrafine.raster.vector import PARQUET
from terrafine.spec import CatalogueSpec, ImagerySpec, resolve_in

# The map store's array `source` counts scenes in 16 bits, and 65535 says "not written".
MAX_SCENES = 65534

# Degrees between the vertices of a footprint's edge when it is bent into another CRS.
_STEP = 0.05


@dataclass(frozen=True, slots=True)
class Entry:
    """One scene of a catalogue.

    ``bounds``: (left, bottom, right, top) in ``crs``. ``grid``: where the catalogue states its
    pixels. ``cloud``: percent. ``mask``: file of the cloud mask, where it has one of its own.
    ``updated``: when the catalogue says that it was made anew.
    """

    name: str
    files: tuple[Place, ...]
    crs: str
    bounds: Bounds
    grid: PixelGrid | None = None
    time: datetime | None = None
    cloud: float | None = None
    priority: float | None = None
    mask: Place | None = None
    updated: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """Scenes, the one on top first. ``unreadable``: scene -> why it is not among them."""

    entries: tuple[Entry, ...]
    unreadable: Mapping[str, str]
    where: str


def read_catalogue(imagery: ImagerySpec, root: Path) -> Catalogue:
    """The scenes of ``imagery.catalogue`` that pass its filters, in its order.

    No scene is opened, but for a folder the header of one file. RasterError when the source
    is missing or damaged, a scene lacks what a filter or the order asks for, or none is left. What
    lies behind a URL is asked for once in a process.
    """
    spec = imagery.catalogue
    assert spec is not None, "only called for a catalogue"
    place = source_place(spec, root)
    own = [place] if isinstance(place, Path) else []
    own += [resolve_in(root, spec.region)] if spec.region else []
    return _read(imagery, root, place, tuple(stamp for path in own for stamp in _stamps(path)))


def catalogue_digest(imagery: ImagerySpec, root: Path) -> str:
    """SHA-256 of what the catalogue says of its scenes, and of size and time of change of those
    on this machine: nobody reads a country's imagery to see whether it changed."""
    digest = hashlib.sha256()
    for entry in read_catalogue(imagery, root).entries:
        digest.update(f"{replace(entry, files=(), mask=None)}\n".encode())
        for file in filter(None, (*entry.files, entry.mask)):
            if isinstance(file, Path):
                named = file.relative_to(root.resolve())
                changed = [stamp[1:] for stamp in _stamps(file)]
                digest.update(f"{named} {changed}\n".encode())
            else:
                digest.update(f"{file}\n".encode())
    return digest.hexdigest()


def catalogue_stamps(imagery: ImagerySpec, root: Path) -> dict[str, str]:
    """Scene -> what changes when its files do: STAC's ``updated``, and size and time of change of
    files on this machine. A scene behind a URL of which the catalogue says no such thing has none.
    """
    found = {}
    for entry in read_catalogue(imagery, root).entries:
        here = [file for file in (*entry.files, entry.mask) if isinstance(file, Path)]
        parts = [entry.updated, *(stamp[1:] for file in here for stamp in _stamps(file))]
        if any(parts):
            found[entry.name] = hashlib.sha256(f"{parts}".encode()).hexdigest()[:16]
    return found


Stamp = tuple[str, int, int]


def _stamps(path: Path) -> list[Stamp]:
    """Name, size and time of change of a file, or of all files in a folder."""
    if path.is_dir():
        return [stamp for file in sorted(path.rglob("*")) for stamp in _stamps(file)]
    try:
        stat = path.stat()
    except OSError:
        return []
    return [(str(path), stat.st_size, stat.st_mtime_ns)]


# All stages of a run see the same scenes, and an API is asked once.
@lru_cache(maxsize=4)
def _read(imagery: ImagerySpec, root: Path, place: Place, stamps: tuple[Stamp, ...]) -> Catalogue:
    spec = imagery.catalogue
    assert spec is not None, "only called for a catalogue"
    region = (
        None
        if spec.region is None
        else Region.read(spec.region, root, key="imagery.catalogue.region")
    )
    unreadable: dict[str, str] = {}
    if is_folder(place):
        records, unreadable = folder_records(place, imagery, root)
        if unreadable and not imagery.skips_unreadable:
            raise RasterError(next(iter(unreadable.values())))
    elif str(place).lower().endswith(PARQUET):
        records = table_records(place, root)
    else:
        records = stac_records(place, spec, root, region.bounds if region else None)
    entries = _distinct(_entries(records, imagery, root, str(place)), str(place))
    found = len(entries)
    for keep in _filters(spec, region):
        entries = keep(entries)
    if not entries:
        raise RasterError(
            f"{place}: no scene is left of the {found} in the catalogue"
            f"{f' ({len(unreadable)} cannot be read)' if unreadable else ''}; loosen "
            "imagery.catalogue's max_cloud_cover, dates, region or pattern, or correct its source"
        )
    if len(entries) > MAX_SCENES:
        raise RasterError(
            f"{place}: {len(entries)} scenes are more than the {MAX_SCENES} a map can tell apart; "
            "filter them by imagery.catalogue's max_cloud_cover, dates or region"
        )
    return Catalogue(tuple(_ordered(entries, spec)), unreadable, str(place))


def _distinct(entries: Sequence[Entry], where: str) -> list[Entry]:
    """An API may list a scene on two pages; two scenes of one name are an error."""
    known: dict[str, Entry] = {}
    for entry in entries:
        if known.setdefault(entry.name, entry).files != entry.files:
            raise RasterError(
                f"{where}: two scenes are called {entry.name} ({known[entry.name].files[0]} and "
                f"{entry.files[0]}); give them names of their own"
            )
    return list(known.values())


Filter = Callable[[list[Entry]], list[Entry]]


def _filters(spec: CatalogueSpec, region: Region | None) -> list[Filter]:
    filters: list[Filter] = []
    if spec.dates is not None:
        first, last = spec.dates
        filters.append(
            lambda entries: [e for e in entries if first <= _time(e, "dates").date() <= last]
        )
    if spec.max_cloud_cover is not None:
        most = spec.max_cloud_cover
        filters.append(lambda entries: [e for e in entries if _cloud(e, "max_cloud_cover") <= most])
    if region is not None:
        filters.append(lambda entries: _inside(entries, region))
    return filters


def _inside(entries: list[Entry], region: Region) -> list[Entry]:
    inside = np.zeros(len(entries), bool)
    for crs, indexes in _by_crs(entries).items():
        inside[indexes] = region.touches(crs, [entries[i].bounds for i in indexes])
    return [entry for entry, kept in zip(entries, inside, strict=True) if kept]


def _ordered(entries: list[Entry], spec: CatalogueSpec) -> list[Entry]:
    """The scene on top first; equals stay in the catalogue's order."""
    keys: dict[str, Callable[[Entry], float]] = {
        "cloud_cover": lambda entry: _cloud(entry, "order"),
        "newest": lambda entry: -_time(entry, "order").timestamp(),
        "oldest": lambda entry: _time(entry, "order").timestamp(),
        "priority": lambda entry: _stated(entry, entry.priority, "priority", "order"),
    }
    return entries if spec.order == "catalogue" else sorted(entries, key=keys[spec.order])


def _time(entry: Entry, key: str) -> datetime:
    if entry.time is None:
        raise _unstated(entry, "time", key)
    return entry.time


def _cloud(entry: Entry, key: str) -> float:
    return _stated(entry, entry.cloud, "cloud cover", key)


def _stated(entry: Entry, value: float | None, what: str, key: str) -> float:
    if value is None or not math.isfinite(value):
        raise _unstated(entry, what, key)
    return value


def _unstated(entry: Entry, what: str, key: str) -> RasterError:
    return RasterError(
        f"scene {entry.name} ({entry.files[0]}): the catalogue states no {what}, which "
        f"imagery.catalogue.{key} asks for; write it into the catalogue, or leave {key} out"
    )


def _entries(
    records: Sequence[Record], imagery: ImagerySpec, root: Path, where: str
) -> list[Entry]:
    entries = [_entry(record, imagery, root, where) for record in records]
    outlines: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if not entry.bounds:
            outlines[str(records[index]["geometry_crs"]), entry.crs].append(index)
    for (source, target), indexes in outlines.items():
        shapes = shapely.segmentize(
            np.array([_shape(records[i], entries[i].name, where) for i in indexes]),
            _STEP if source != target else math.inf,
        )
        forward = transformer(source, target)
        bent = shapely.transform(shapes, lambda xy, t=forward: np.column_stack(t.transform(*xy.T)))
        for index, bounds in zip(indexes, shapely.bounds(bent).tolist(), strict=True):
            entries[index] = replace(entries[index], bounds=tuple(bounds))
    for entry in entries:
        left, bottom, right, top = entry.bounds
        if not (left < right and bottom < top and all(map(math.isfinite, entry.bounds))):
            raise RasterError(
                f"{where}: scene {entry.name} lies nowhere ({entry.bounds} in {entry.crs[:40]}); "
                "correct its footprint or its CRS in the catalogue"
            )
    return entries


def _entry(record: Record, imagery: ImagerySpec, root: Path, where: str) -> Entry:
    """A record's scene; without bounds, ``()``, where only an outline is stated."""
    name = str(record.get("id") or "")
    if not name:
        raise RasterError(f"{where}: a scene has no id; the catalogue is damaged")
    files, said, mask = _files(record, imagery, root, f"{where}: scene {name}")
    said = {**record, **said}
    number = _number(said.get("proj:epsg"))
    stated = said.get("proj:code") or (f"EPSG:{number:.0f}" if number else None)
    crs = imagery.crs or stated
    if not crs:
        raise RasterError(
            f"{where}: scene {name} states no CRS; write it as proj:code into the catalogue, or "
            "set imagery.crs"
        )
    crs = checked_crs(str(crs), f"{where}: scene {name}")
    grid, bounds = _pixels(said, crs, f"{where}: scene {name}")
    return Entry(
        name=name,
        files=files,
        crs=crs,
        bounds=bounds,
        grid=grid,
        time=_moment(said.get("datetime") or said.get("start_datetime"), f"{where}: scene {name}"),
        cloud=_number(said.get("eo:cloud_cover", said.get("cloud_cover"))),
        priority=_number(said.get("priority")),
        mask=mask,
        updated=str(said["updated"]) if said.get("updated") else None,
    )


def _files(
    record: Record, imagery: ImagerySpec, root: Path, where: str
) -> tuple[tuple[Place, ...], Mapping[str, Any], Place | None]:
    """Files of the bands, what the first says of its pixels, and the file of the cloud mask."""
    spec = imagery.catalogue
    assert spec is not None, "only a catalogue has records"
    asked = spec.cloud_mask.asset if spec.cloud_mask else None
    if "files" in record:
        mask = linked(str(record[asked]), record["base"], root) if asked in record else None
        files, said = tuple(record["files"]), {}
    else:
        assets = {n: a for n, a in record["assets"].items() if a and a.get("href")}
        chosen = spec.assets or _guessed(assets, imagery, asked)
        for name in [*chosen, *([asked] if asked else [])]:
            if name not in assets:
                raise RasterError(
                    f"{where} has no asset {name!r}; it has {', '.join(assets) or 'none'}; name "
                    "those of the bands in imagery.catalogue.assets"
                )
        base = record.get("base")
        places = {n: a["href"] if base is None else linked(a["href"], base, root)
                  for n, a in assets.items() if n in chosen or n == asked}  # fmt: skip
        files, said = tuple(places[name] for name in chosen), assets[chosen[0]]
        mask = places.get(asked) if asked else None
    if asked and mask is None:
        raise RasterError(
            f"{where} has no {asked!r}, which imagery.catalogue.cloud_mask asks for; write it into "
            "the catalogue, or leave cloud_mask out"
        )
    return files, {k: v for k, v in said.items() if k.startswith("proj:")}, mask


def _guessed(assets: Mapping[str, Any], imagery: ImagerySpec, mask: str | None) -> tuple[str, ...]:
    """Assets named like the bands, else the only image; empty names lead to the error above."""
    if all(band in assets for band in imagery.bands):
        return imagery.bands
    images = [
        name
        for name, asset in assets.items()
        if name != mask
        and ("data" in (asset.get("roles") or []) or _is_image(str(asset.get("type") or "")))
        and not {"thumbnail", "overview"} & set(asset.get("roles") or [])
    ]
    return (images[0],) if len(images) == 1 else imagery.bands


def _is_image(media_type: str) -> bool:
    return media_type.startswith(("image/tiff", "image/jp2", "image/vnd.stac.geotiff"))


def _pixels(said: Mapping[str, Any], crs: str, where: str) -> tuple[PixelGrid | None, Any]:
    """Grid and bounds as far as they are stated."""
    coefficients, shape = said.get("proj:transform"), said.get("proj:shape")
    if coefficients is not None and shape is not None:
        with understood(where, "proj:transform", coefficients):
            a, b, left, d, e, top = (float(value) for value in list(coefficients)[:6])
        with understood(where, "proj:shape", shape):
            height, width = (int(value) for value in shape)
        grid = PixelGrid.from_transform(crs, Affine(a, b, left, d, e, top), where=where)
        return grid, (left, top + height * e, left + width * a, top)
    box = said.get("proj:bbox")
    if box is None:
        return None, ()
    with understood(where, "proj:bbox", box):
        # west, south, (lowest,) east, north(, highest)
        flat = [box[i] for i in (0, 1, 3, 4)] if len(box) == 6 else box
        left, bottom, right, top = (float(value) for value in flat)
    return None, (left, bottom, right, top)


def _shape(record: Record, name: str, where: str) -> BaseGeometry:
    geometry = record.get("geometry")
    if geometry is None or not record.get("geometry_crs"):
        raise RasterError(
            f"{where}: scene {name} has no footprint; write its geometry (with a CRS), proj:bbox, "
            "or proj:transform and proj:shape into the catalogue"
        )
    with understood(f"{where}: scene {name}", "geometry", geometry):
        return geometry if isinstance(geometry, BaseGeometry) else shapely.geometry.shape(geometry)


def _moment(value: object, where: str) -> datetime | None:
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise RasterError(
            f"{where}: {value!r} is no time; write datetime like 2020-06-30T03:00:00Z"
        ) from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _number(value: object) -> float | None:
    return float(value) if _is_number(value) else None  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _by_crs(entries: Sequence[Entry]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        found[entry.crs].append(index)
    return found
