"""A map release as a STAC item: what it is, where, from what, and how to check its files.

Core STAC 1.1 with the extensions projection (proj:code, proj:transform, proj:shape),
classification (classes and colours of the land-cover asset), file (size, multihash checksum) and
processing (software and lineage). Everything of terrafine's own stands under ``terrafine:``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
from pystac.extensions.classification import Classification, ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension

from terrafine import __version__
from terrafine.errors import TerrafineError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import NO_CLASS, UNWRITTEN, Legend
from terrafine.publish.geography import bbox_wgs84, outline_wgs84, pixel_width_metres

PROCESSING_EXTENSION = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"

# Multihash prefix of SHA-256: function code 0x12, 0x20 bytes follow.
_SHA256_MULTIHASH = "1220"


@dataclass(frozen=True)
class _Kind:
    title: str
    media_type: str
    roles: tuple[str, ...]


ASSETS: Mapping[str, _Kind] = {
    "landcover": _Kind("Land cover (class codes)", pystac.MediaType.COG, ("data",)),
    "confidence": _Kind(
        "The model's own probability of the mapped class, percent",
        pystac.MediaType.COG,
        ("data", "metadata"),
    ),
    "source": _Kind(
        "Scene that the pixel was mapped from: its number in the run's list",
        pystac.MediaType.COG,
        ("metadata",),
    ),
    "report": _Kind(
        "Report: what was made, how good it is", pystac.MediaType.HTML, ("overview", "metadata")
    ),
    "quicklook": _Kind("Quick look with legend", pystac.MediaType.PNG, ("thumbnail",)),
    "map-store": _Kind(
        "Map store (Icechunk): land cover, confidence, source and their history",
        "application/vnd.zarr; version=3",
        ("data",),
    ),
}


def item(
    *,
    identifier: str,
    title: str,
    created: datetime,
    grid: PixelGrid,
    window: Window,
    legend: Legend,
    files: Mapping[str, Path],
    folder: Path,
    observed: datetime | tuple[datetime, datetime] | None = None,
    lineage: str = "",
    provenance: Mapping[str, str | int | float] | None = None,
) -> pystac.Item:
    """The STAC item of one zone of a map release.

    ``files``: asset name (a key of :data:`ASSETS`) -> file or, for ``map-store``, folder; all lie
    under ``folder``, where the item is going to be saved, and are linked relative to it.
    ``observed``: when the imagery was taken (an instant or first and last); without it
    ``datetime`` is ``created`` and the description says so. ``provenance``: digests and versions,
    written as ``terrafine:<key>``. Geometry and bbox are WGS 84. Raises TerrafineError for an
    unknown asset, or a file that is missing or outside ``folder``.
    """
    start, end = observed if isinstance(observed, tuple) else (None, None)
    instant = observed if isinstance(observed, datetime) else None
    made = pystac.Item(
        id=identifier,
        geometry=outline_wgs84(grid, window),
        bbox=bbox_wgs84(grid, window),
        datetime=None if start else instant or created,
        start_datetime=start,
        end_datetime=end,
        properties={
            "title": title,
            "created": _rfc3339(created),
            "description": _description(legend, dated=observed is not None),
            "processing:software": {"terrafine": __version__},
            "processing:datetime": _rfc3339(created),
            **({"processing:lineage": lineage} if lineage else {}),
            **{f"terrafine:{key}": value for key, value in (provenance or {}).items()},
        },
        stac_extensions=[PROCESSING_EXTENSION],
    )
    _add_projection(made, grid, window)
    for name, path in files.items():
        made.add_asset(name, _asset(name, path, folder))
        if path.is_file():
            _add_file(made.assets[name], path)
    _describe_pixels(made, legend, gsd=pixel_width_metres(grid, window))
    return made


def classes(legend: Legend) -> list[Classification]:
    """The legend in the words of the classification extension, with the codes that are no class."""
    listed = [
        Classification.create(
            value=c.code,
            name=re.sub(r"[^0-9A-Za-z]+", "-", c.name).strip("-"),
            title=c.name,
            description=c.name,
            color_hint=c.color[1:].upper(),
        )
        for c in legend.classes
    ]
    for value, name, meaning in (
        (NO_CLASS, "no-class", "looked at, no class could be given"),
        (UNWRITTEN, "unwritten", "never mapped"),
    ):
        listed.append(
            Classification.create(
                value=value, name=name, title=name, description=meaning, nodata=True
            )
        )
    return listed


def checksum(path: Path) -> str:
    """SHA-256 of a file as a multihash in hexadecimal, as ``file:checksum`` wants it."""
    with path.open("rb") as file:
        return _SHA256_MULTIHASH + hashlib.file_digest(file, "sha256").hexdigest()


def _description(legend: Legend, *, dated: bool) -> str:
    text = f"Land-cover map with {len(legend.classes)} classes: {', '.join(legend.names)}."
    if not dated:
        text += " The imagery's date is not known here: datetime is when the map was made."
    return text


def _asset(name: str, path: Path, folder: Path) -> pystac.Asset:
    if name not in ASSETS:
        raise TerrafineError(f"STAC asset {name!r} is unknown; known: {', '.join(ASSETS)}")
    if not path.exists():
        raise TerrafineError(f"{path}: the STAC asset {name!r} is not there; publish it first")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise TerrafineError(
            f"{path}: the STAC asset {name!r} lies outside {folder}, where the item is saved; "
            "put it below that folder so that the links survive a move"
        )
    kind = ASSETS[name]
    href = "./" + path.resolve().relative_to(folder.resolve()).as_posix()
    return pystac.Asset(
        href=href, title=kind.title, media_type=kind.media_type, roles=list(kind.roles)
    )


def _add_projection(made: pystac.Item, grid: PixelGrid, window: Window) -> None:
    projection = ProjectionExtension.ext(made, add_if_missing=True)
    is_code = re.fullmatch(r"[A-Za-z]+:[0-9A-Za-z]+", grid.crs) is not None
    projection.apply(
        code=grid.crs.upper() if is_code else None,
        wkt2=None if is_code else grid.crs,
        transform=list(grid.transform(window))[:6],
        shape=list(window.shape),
        bbox=list(grid.bounds(window)),
    )


def _add_file(asset: pystac.Asset, path: Path) -> None:
    FileExtension.ext(asset, add_if_missing=True).apply(
        size=path.stat().st_size, checksum=checksum(path)
    )


def _describe_pixels(made: pystac.Item, legend: Legend, gsd: float) -> None:
    """Data type, nodata, unit and classes of the raster assets (STAC 1.1 band fields)."""
    for name in ("landcover", "confidence"):
        if name in made.assets:
            fields: dict[str, Any] = {"data_type": "uint8", "nodata": UNWRITTEN, "gsd": gsd}
            if name == "confidence":
                fields["unit"] = "%"
            made.assets[name].extra_fields.update(fields)
    if "landcover" in made.assets:
        ClassificationExtension.ext(made.assets["landcover"], add_if_missing=True).apply(
            classes=classes(legend)
        )


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
