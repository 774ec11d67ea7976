"""Where catalogues come from: STAC files and APIs, GeoParquet tables and folders of rasters.

Each source yields flat records, one per scene, in the words of STAC: ``id``, ``geometry`` (with
``geometry_crs``), ``datetime``, ``eo:cloud_cover``, ``proj:code``, ``proj:transform``,
``proj:shape``, ``proj:bbox``, ``priority``, and either ``assets`` or ``files``.
"""

from __future__ import annotations

import json
import posixpath
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

import rasterio
from shapely.errors import ShapelyError

from terrafine.errors import RasterError, TerrafineError, UnreachableError
from terrafine.raster.files import Place, crs_text, gdal_name, reading
from terrafine.raster.region import LONLAT, Bounds
from terrafine.raster.vector import PARQUET, read_table
from terrafine.spec import CatalogueSpec, ImagerySpec, resolve_in
from terrafine.storage import Storage

Record = dict[str, Any]

_RASTERS = (".tif", ".tiff", ".jp2", ".vrt", ".img")
_WEB = ("http://", "https://")
# Of a request that a server or the network refused.
_ATTEMPTS = 4
_AT_ONCE = 8
_PAGE = 500
_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)")


@contextmanager
def understood(where: str, key: str, value: object) -> Iterator[None]:
    """Errors that a damaged ``value`` of a catalogue leads to become a RasterError naming it."""
    try:
        yield
    except TerrafineError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
        ShapelyError,
    ) as error:
        raise RasterError(
            f"{where}: {key} is {value!r:.80}, which says nothing ({error!r}); correct the "
            "catalogue"
        ) from error


def source_place(spec: CatalogueSpec, root: Path) -> Place:
    """The catalogue's source; RasterError when a path is not there."""
    if "://" in spec.source:
        return spec.source.rstrip("/")
    path = resolve_in(root, spec.source)
    if not path.exists():
        raise RasterError(
            f"{path}: there is no such catalogue; check imagery.catalogue.source and the data "
            "root (the spec's folder, --data or TERRAFINE_DATA)"
        )
    return path


def is_folder(place: Place) -> bool:
    """Whether a source is a folder of rasters."""
    if isinstance(place, Path):
        return place.is_dir()
    files = (*PARQUET, ".json", ".geojson")
    return not place.startswith(_WEB) and not place.lower().endswith(files)


def stac_records(place: Place, spec: CatalogueSpec, root: Path, box: Bounds | None) -> list[Record]:
    """Items of a STAC item collection, collection or API, with every page and linked file.

    ``box``: degrees; an API is asked for no more than that, and for ``spec.dates``.
    """
    return [_record(item, base, root) for item, base in _items(place, spec, root, box)]


def _record(item: Mapping[str, Any], base: Place, root: Path) -> Record:
    where = f"{base}: scene {item.get('id')}"
    assets, properties = item.get("assets") or {}, item.get("properties") or {}
    with understood(where, "assets", assets):
        found = {
            name: {**asset, "href": linked(asset["href"], base, root)}
            for name, asset in assets.items()
            if asset and "href" in asset
        }
    with understood(where, "properties", properties):
        return {
            **properties,
            "id": item.get("id"),
            "geometry": item.get("geometry"),
            "geometry_crs": LONLAT,
            "assets": found,
        }


def _items(
    first: Place, spec: CatalogueSpec, root: Path, box: Bounds | None
) -> Iterator[tuple[Mapping[str, Any], Place]]:
    todo: list[Place] = [first]
    seen: set[Place] = set()
    while todo:
        fresh = [place for place in dict.fromkeys(todo) if place not in seen]
        seen.update(fresh)
        todo = []
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for place, document in zip(fresh, threads.map(_json, fresh), strict=True):
                kind = document.get("type")
                if kind == "Feature":
                    yield document, place
                elif kind == "FeatureCollection":
                    yield from ((item, place) for item in _features(document, place))
                    todo += _links(document, place, root, "next")
                elif kind in ("Collection", "Catalog"):
                    todo += _below(document, place, root, _query(spec, box))
                else:
                    raise RasterError(
                        f"{place}: is no STAC item, item collection, collection or catalog (type "
                        f"{kind!r}); correct imagery.catalogue.source"
                    )


def _features(document: Mapping[str, Any], place: Place) -> list[Mapping[str, Any]]:
    features = document.get("features")
    if not isinstance(features, list) or not all(isinstance(item, dict) for item in features):
        raise RasterError(
            f"{place}: features is {features!r:.80}, no list of STAC items; write or download the "
            "catalogue again"
        )
    return features


def _below(
    document: Mapping[str, Any], place: Place, root: Path, query: Mapping[str, str]
) -> list[Place]:
    """What a collection or catalog leads to: an API's items, or linked files."""
    pages = _links(document, place, root, "items")
    if pages:
        return [_with_query(str(page), query) for page in pages[:1]]
    if _links(document, place, root, "search"):
        raise RasterError(
            f"{place}: is a whole STAC API; name one of its collections "
            "(.../collections/NAME) or a search (.../search?collections=NAME)"
        )
    return _links(document, place, root, "item") + _links(document, place, root, "child")


def _links(document: Mapping[str, Any], place: Place, root: Path, rel: str) -> list[Place]:
    stated = document.get("links") or []
    with understood(str(place), "links", stated):
        links = [link for link in stated if link.get("rel") == rel]
        if any(link.get("method", "GET") != "GET" for link in links):
            raise RasterError(
                f"{place}: its next page has to be asked for by POST; name the collection "
                "(.../collections/NAME) instead of the search"
            )
        return [linked(link["href"], place, root) for link in links]


def _query(spec: CatalogueSpec, box: Bounds | None) -> dict[str, str]:
    query = {"limit": str(_PAGE)}
    if spec.dates is not None:
        query["datetime"] = f"{spec.dates[0]}T00:00:00Z/{spec.dates[1]}T23:59:59Z"
    if box is not None:
        query["bbox"] = ",".join(f"{value:.6f}" for value in box)
    return query


def _with_query(url: str, query: Mapping[str, str]) -> str:
    parts = urlsplit(url)
    joined = "&".join(filter(None, [parts.query, urlencode(query, safe=",:/")]))
    return urlunsplit(parts._replace(query=joined))


def linked(href: str, base: Place, root: Path) -> Place:
    """What a link in the document at ``base`` means; SpecError when a path leaves the root."""
    if "://" in href:
        return href
    if isinstance(base, Path):
        return resolve_in(root, str(base.parent / href))
    if base.startswith(_WEB):
        return urljoin(base, href)
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(rest), href))}"


def table_records(place: Place, root: Path) -> list[Record]:
    """Rows of a GeoParquet: stac-geoparquet, or ``file`` or ``files`` and what else is known."""
    frame = read_table(fetch(place), where=str(place), what="footprints")
    crs = None if frame.crs is None else crs_text(rasterio.crs.CRS.from_wkt(frame.crs.to_wkt()))
    name = frame.geometry.name
    rows: list[Record] = []
    cells = frame.drop(columns=name).to_dict("records")
    for number, (stated, geometry) in enumerate(zip(cells, frame.geometry, strict=True), 1):
        row = {key: value for key, value in stated.items() if not _is_empty(value)}
        row.update(geometry=geometry, geometry_crs=crs, base=place)
        rows.append(row)
        files = row.pop("files", row.pop("file", None))
        if files is None and "assets" not in row:
            raise RasterError(
                f"{place}: row {number} names no file; the table needs a column `file` (one), "
                "`files` (a list) or `assets` (stac-geoparquet)"
            )
        if files is not None:
            with understood(f"{place}: row {number}", "files", files):
                names = [files] if isinstance(files, str) else list(files)
                row["files"] = [linked(str(file), place, root) for file in names]
        row.setdefault("id", row.get("name", f"row-{number}"))
        if "crs" in row:
            row.setdefault("proj:code", row["crs"])
        elif crs is not None and not frame.crs.is_geographic:
            row.setdefault("proj:code", crs)
    return rows


def _is_empty(cell: Any) -> bool:
    import pandas  # slow to import

    return bool(pandas.api.types.is_scalar(cell) and pandas.isna(cell))


def folder_records(
    place: Place, imagery: ImagerySpec, root: Path
) -> tuple[list[Record], dict[str, str]]:
    """Scenes of a folder, by name, and those that cannot be read, with the reason.

    The header of one file of every scene is read; the day is the first one in its name.
    """
    groups = _grouped(_listed(place, root), imagery)
    wanted = _wanted(imagery)
    # the first band's: a cloud mask may have larger pixels
    first = [files.get(wanted[0], next(iter(files.values()))) for files in groups.values()]
    found: list[Record] = []
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for (name, files), header in zip(groups.items(), threads.map(_header, first), strict=True):
            lacks = [band for band in wanted if band not in files] if len(wanted) > 1 else []
            if lacks:
                unreadable[name] = f"scene {name}: there is no file for {', '.join(lacks)}"
            elif isinstance(header, str):
                unreadable[name] = header
            else:
                assets = {band: {"href": file, "roles": ["data"]} for band, file in files.items()}
                day = _DAY.search(name)
                found.append({"id": name, "assets": assets, **header})
                if day:
                    found[-1]["datetime"] = "-".join(day.groups())
    return found, unreadable


def _wanted(imagery: ImagerySpec) -> tuple[str, ...]:
    """Values of {band} in the pattern, or one empty one."""
    spec = imagery.catalogue
    assert spec is not None, "only a catalogue has a folder"
    if "{band}" not in spec.pattern:
        return ("",)
    mask = spec.cloud_mask.asset if spec.cloud_mask else None
    return (*(spec.assets or imagery.bands), *([mask] if mask else []))


def _listed(place: Place, root: Path) -> dict[str, Place]:
    """Name in the folder -> file, sorted."""
    if isinstance(place, Path):
        paths = sorted(path for path in place.rglob("*") if path.is_file())
        return {p.relative_to(place).as_posix(): resolve_in(root, str(p)) for p in paths}
    return {name: f"{place}/{name}" for name in Storage.at(place).names()}


def _grouped(files: Mapping[str, Place], imagery: ImagerySpec) -> dict[str, dict[str, Place]]:
    """Scene -> value of {band} -> file."""
    spec = imagery.catalogue
    assert spec is not None, "only a catalogue has a folder"
    pattern = _regex(spec.pattern, _wanted(imagery))
    groups: dict[str, dict[str, Place]] = {}
    for name, file in files.items():
        match = pattern.fullmatch(name)
        if match is None or not name.lower().endswith(_RASTERS):
            continue
        band = match.groupdict().get("band", "")
        stem = name.rpartition(".")[0]
        if band:
            stem = (name[: match.start("band")] + name[match.end("band") :]).rpartition(".")[0]
            stem = re.sub(r"[_.-]+(?=$|/)", "", stem)
        groups.setdefault(stem, {})[band or "image"] = file
    return groups


def _regex(pattern: str, bands: tuple[str, ...]) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts["{band}"] = f"(?P<band>{'|'.join(map(re.escape, bands))})"
    found = re.split(r"(\*\*/|\*|\?|\{band\})", pattern)
    return re.compile("".join(parts.get(part, re.escape(part)) for part in found))


def _header(place: Place) -> Record | str:
    """Where a file lies, or why it cannot be read; UnreachableError where that is not known."""
    try:
        with reading(place), rasterio.open(gdal_name(place)) as dataset:
            return {
                **({} if dataset.crs is None else {"proj:code": crs_text(dataset.crs)}),
                "proj:transform": list(dataset.transform)[:6],
                "proj:shape": [dataset.height, dataset.width],
            }
    except UnreachableError:
        raise
    except RasterError as error:
        return str(error)


def _json(place: Place) -> Mapping[str, Any]:
    try:
        document = json.loads(fetch(place))
    except ValueError as error:
        raise RasterError(
            f"{place}: is no JSON ({error}), the catalogue is damaged or no STAC; write or "
            "download it again"
        ) from error
    if not isinstance(document, dict):
        raise RasterError(f"{place}: is no STAC document; correct imagery.catalogue.source")
    return document


def fetch(place: Place) -> bytes:
    """The bytes of a file or an answer; RasterError, after some attempts, or StorageError."""
    if isinstance(place, Path):
        try:
            return place.read_bytes()
        except OSError as error:
            raise RasterError(
                f"{place}: cannot be read ({error.strerror}); the catalogue names it, so restore "
                "it or write the catalogue again"
            ) from error
    if place.startswith(_WEB):
        return _download(place)
    folder, _, name = place.rpartition("/")
    data = Storage.at(folder).read(name)
    if data is None:
        raise RasterError(f"{place}: there is no such object; check imagery.catalogue.source")
    return data


def _download(url: str) -> bytes:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            request = urllib.request.Request(url, headers={"Accept": "application/geo+json, */*"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bytes(answer.read())
        # an answer that ends too soon is no OSError
        except (OSError, HTTPException) as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else 503
            if attempt == _ATTEMPTS or (status < 500 and status != 429):
                raise RasterError(
                    f"{url}: does not answer ({error}); check imagery.catalogue.source and the "
                    "network, and try again"
                ) from error
        time.sleep(0.25 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")
