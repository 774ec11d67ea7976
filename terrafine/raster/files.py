"""Raster files: opening, what a file must state, and GDAL's errors in a person's words."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import rasterio
from affine import Affine
from rasterio._err import (
    _ERROR_STACK,
    CPLE_AWSBucketNotFoundError,
    CPLE_AWSObjectNotFoundError,
    CPLE_BaseError,
    stack_errors,
)
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from terrafine.errors import RasterError, UnreachableError
from terrafine.geometry import PixelGrid, Window

# GDAL's block cache in bytes: GDAL_CACHEMAX=256 would mean 256 bytes (facts/performance.md).
CACHE_BYTES = 256 * 2**20

Place = Path | str
"""Where a file is: a path on this machine, or a URL (s3://, gs://, az://, https://)."""

# GDAL's names for what lies behind a URL. rasterio's own would ask boto3 for credentials, which
# GDAL finds in the environment as well.
_VIRTUAL = {
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
}

# A bucket that answers 503, late or not at all is asked again; siblings of a file are not listed.
# What GDAL keeps of a file goes when it is closed: it would answer for a server that is back.
_REMOTE = {
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsigs/:/vsiaz/:/vsicurl/",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
}

# GDAL's numbers (cpl_error.h) of errors that say what a server answered, or that none did.
_SERVERS_WORDS = range(11, 18)

# GDAL's words for a file that is not there, and for blocks that came whole and cannot be decoded.
_GONE = re.compile(r"HTTP response code: (404|410)\b")
_SPOILT = re.compile(r"\b[A-Z]\w*Decode:")
_NO_RASTER = "not recognized as being in a supported file format"

# Open files kept per process, so that a mosaic of thousands of scenes does not exhaust the
# process's file descriptors.
MAX_OPEN_FILES = 64


def gdal_name(place: Place) -> str:
    """What GDAL calls a file; RasterError for a URL of an unknown kind."""
    if isinstance(place, Path):
        return str(place)
    scheme, _, rest = place.partition("://")
    if scheme not in _VIRTUAL:
        raise RasterError(
            f"{place}: URLs of this kind cannot be read; give {', '.join(_VIRTUAL)} or a path"
        )
    return _VIRTUAL[scheme] + rest


def file_name(place: Place) -> str:
    """The last part of a path or URL."""
    return str(place).rpartition("/")[2]


def _is_url(place: Place) -> bool:
    return isinstance(place, str) and "://" in place


def _settings(place: Place) -> dict[str, Any]:
    settings: dict[str, Any] = {"GDAL_CACHEMAX": CACHE_BYTES}
    if _is_url(place):
        settings |= _REMOTE
        # GDAL does not know the variables by which the AWS tools find another server
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            server = urlsplit(endpoint)
            settings["AWS_S3_ENDPOINT"] = server.netloc
            settings["AWS_HTTPS"] = "YES" if server.scheme == "https" else "NO"
            settings["AWS_VIRTUAL_HOSTING"] = "FALSE"
    return settings


@contextmanager
def reading(path: Place) -> Iterator[None]:
    """GDAL's settings for reading; its errors become RasterError naming ``path``.

    UnreachableError where the file lies behind a URL and it is not certain that it is gone or
    damaged: GDAL's words for a block that a server refuses are those for a file that was cut off.
    """
    try:
        with rasterio.Env(**_settings(path)):
            yield
    except (RasterioError, CPLE_BaseError, OSError) as error:
        found: BaseException = error
        if _is_url(path) and not _is_settled(str(path), found):
            found = _asked_again(str(path), error)
            if not _is_settled(str(path), found):
                raise UnreachableError(
                    f"{path}: cannot be read now ({_reason(found)}), which may be its server, the "
                    "network or the credentials in the environment; see to them and run the same "
                    "command again: what is finished is kept (if this is said again and again the "
                    "file is damaged: copy it anew, or take it out of the catalogue)"
                ) from error
        raise RasterError(
            f"{path}: cannot be read, the file is damaged or no raster ({_reason(found)}); "
            "copy or download it again"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    # rasterio's "Read failed. See previous exception" hides GDAL's own words in the cause
    return " ".join(str(error.__cause__ or error).split())


def _is_settled(url: str, error: BaseException) -> bool:
    """Whether a server has answered, and the file is gone or damaged."""
    for cause in _causes(error):
        said = str(cause)
        if isinstance(cause, (CPLE_AWSObjectNotFoundError, CPLE_AWSBucketNotFoundError)):
            return True
        if _GONE.search(said) or _SPOILT.search(said):
            return True
        # a web server may give a page instead, as one that asks for a password
        if _NO_RASTER in said and not url.startswith("http"):
            return True
    return False


def _asked_again(url: str, error: BaseException) -> BaseException:
    """The error that says most: of a failed read, what its server says to one who opens the file
    anew."""
    if any(getattr(cause, "errno", None) in _SERVERS_WORDS for cause in _causes(error)):
        return error
    _FILES.close(url)
    try:
        with rasterio.Env(**_settings(url)), rasterio.open(gdal_name(url)):
            return error
    except (RasterioError, CPLE_BaseError, OSError) as said:
        return said


class _OpenFiles:
    """The most recently used datasets of this process, closed when they fall out."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: OrderedDict[tuple[int, str, int], Any] = OrderedDict()

    def get(self, path: Place) -> Any:
        # The process id keeps a forked worker from sharing its parent's file position, the time
        # of change keeps a rewritten file from being read through an old handle.
        changed = path.stat().st_mtime_ns if isinstance(path, Path) else 0
        key = (os.getpid(), str(path), changed)
        if key not in self._open:
            self._open[key] = _whole_header(path)
            if len(self._open) > MAX_OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def close(self, url: str) -> None:
        """Forget what GDAL knows of a file."""
        with self.lock:
            dataset = self._open.pop((os.getpid(), url, 0), None)
            if dataset is not None:
                dataset.close()


def _whole_header(path: Place) -> Any:
    """An open dataset. Of a mask whose header a server refuses GDAL only says that there is none:
    every pixel that it hides would be there."""
    dataset = rasterio.open(gdal_name(path))
    if _is_url(path):
        with stack_errors():
            _ = dataset.mask_flag_enums
            refused = _ERROR_STACK.get()
        if refused:
            raise refused[0]
    return dataset


_FILES = _OpenFiles()


@contextmanager
def opened(path: Place) -> Iterator[Any]:
    """A rasterio dataset of ``path``, shared within the process; threads take turns."""
    with reading(path), _FILES.lock:
        yield _FILES.get(path)


def require_raster(path: Place) -> None:
    """Raise RasterError when ``path`` is missing, no raster, or a local TIFF that was cut off."""
    if isinstance(path, Path) and not path.is_file():
        raise RasterError(
            f"{path}: no such file; check the spec's path and the data root "
            "(the spec's folder, --data or TERRAFINE_DATA)"
        )
    with opened(path) as dataset:
        if dataset.count == 0:
            raise RasterError(
                f"{path}: holds no band of its own; name one of its subdatasets' files"
            )
        if isinstance(path, Path) and dataset.driver == "GTiff":
            _require_whole(path, dataset)


def _require_whole(path: Path, dataset: Any) -> None:
    """A cut TIFF opens without complaint and fails hours later: look where its blocks end."""
    size = path.stat().st_size
    interleaved = dataset.interleaving is not None and dataset.interleaving.name == "pixel"
    for band in range(1, 2 if interleaved else dataset.count + 1):
        block_height, block_width = dataset.block_shapes[band - 1]
        for row in range(-(-dataset.height // block_height)):
            for col in range(-(-dataset.width // block_width)):
                start = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
                length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
                # A block without an offset was never written: GDAL's sparse files, all nodata.
                if start and int(start) + int(length) > size:
                    raise RasterError(
                        f"{path}: truncated: the block of band {band} at row {row * block_height}, "
                        f"column {col * block_width} should end at byte "
                        f"{int(start) + int(length)}, the file has {size}; copy or download it "
                        "again"
                    )


def parse_crs(text: str, *, where: str) -> CRS:
    """The CRS a person wrote; RasterError when it means nothing to PROJ."""
    try:
        return CRS.from_user_input(text)
    except ValueError as error:  # CRSError, or Python's own for EPSG:moon
        raise RasterError(
            f"{where}: {text!r} is no CRS that PROJ knows; write it like EPSG:32650"
        ) from error


def crs_text(crs: CRS) -> str:
    """``EPSG:<code>`` where the CRS has a code, else WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())


def crs_of(dataset: Any, override: str | None, *, where: str, key: str) -> str:
    """The CRS to use for a dataset: ``override`` if given, else the file's own.

    ``key`` is the spec's key that the error tells the reader to set.
    """
    if override is not None:
        return crs_text(parse_crs(override, where=key))
    if dataset.crs is None:
        raise RasterError(
            f"{where}: the file states no CRS; set {key} to the one it is in, e.g. EPSG:32650"
        )
    return crs_text(dataset.crs)


def placement(dataset: Any, crs: str, *, where: str) -> tuple[PixelGrid, Window]:
    """Grid and window of a north-up dataset; RasterError when it is not georeferenced."""
    transform: Affine = dataset.transform
    if transform == Affine.identity():
        raise RasterError(
            f"{where}: the file has no georeferencing (no transform); add it, for example with "
            "gdal_edit -a_ullr, or warp the scene by its ground control points"
        )
    grid = PixelGrid.from_transform(crs, transform, where=where)
    return grid, grid.window(transform, (dataset.height, dataset.width), where=where)
