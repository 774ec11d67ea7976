"""Maps as cloud-optimised GeoTIFFs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy.typing as npt
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend
from terrafine.raster.files import CACHE_BYTES, require_raster

_BLOCK = 512


def write_geotiff(
    path: Path,
    array: npt.NDArray[Any],
    grid: PixelGrid,
    window: Window,
    *,
    nodata: int | None,
    legend: Legend | None,
    overviews: bool = True,
    tags: Mapping[str, str] | None = None,
    description: str | Sequence[str] = "land cover",
) -> None:
    """Write a map as a cloud-optimised GeoTIFF that GDAL and QGIS draw in the legend's colours.

    ``array``: integers that cover ``window`` of ``grid``, (H, W), or (C, H, W) for an image with
    a ``description`` for each band. With a legend (then uint8, one band) come a colour table, and
    the class names in a ``.aux.xml`` beside the file, where GDAL looks for them. Overviews hold
    the most frequent class, or the nearest pixel without a legend. The file appears whole or not
    at all; RasterError names the folder when it cannot be written.
    """
    array_CHW = array if array.ndim == 3 else array[None]
    descriptions = [description] if isinstance(description, str) else list(description)
    if array_CHW.shape != (len(descriptions), *window.shape):
        raise ValueError(
            f"array {array.shape} does not cover window {window.shape} in {len(descriptions)} bands"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tif")
    sidecar, new_sidecar = _sidecar(path), _sidecar(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(
            temporary, array_CHW, grid, window, nodata, legend, overviews, tags or {}, descriptions
        )
        require_raster(temporary)  # GDAL does not report every write that a full disk refused
        if legend is None:
            sidecar.unlink(missing_ok=True)
        else:
            new_sidecar.write_text(_category_names(legend), encoding="utf-8")
            new_sidecar.replace(sidecar)
        temporary.replace(path)
    except (RasterioError, CPLE_BaseError, RasterError, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error.__cause__ or error).split())
        raise RasterError(
            f"{path}: the GeoTIFF cannot be written to {path.parent} ({reason}); free space there "
            "or choose another folder"
        ) from error
    finally:
        # GDAL builds overviews in files of its own beside it
        for leftover in path.parent.glob(f"{temporary.name}*"):
            leftover.unlink()


def _write(
    path: Path,
    array_CHW: npt.NDArray[Any],
    grid: PixelGrid,
    window: Window,
    nodata: int | None,
    legend: Legend | None,
    overviews: bool,
    tags: Mapping[str, str],
    descriptions: Sequence[str],
) -> None:
    options = {
        "compress": "DEFLATE",
        "predictor": "NO" if legend else "YES",
        "blocksize": _BLOCK,
        "overviews": "AUTO" if overviews else "NONE",
        "overview_resampling": "MODE" if legend else "NEAREST",
        "bigtiff": "IF_SAFER",
    }
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
        rasterio.open(
            path,
            "w",
            driver="COG",
            dtype=array_CHW.dtype,
            count=len(array_CHW),
            height=window.height,
            width=window.width,
            crs=grid.crs,
            transform=grid.transform(window),
            nodata=nodata,
            **options,
        ) as dataset,
    ):
        dataset.write(array_CHW)
        for band, description in enumerate(descriptions, start=1):
            dataset.set_band_description(band, description)
        dataset.update_tags(**tags)
        if legend is not None:
            colors = {code: tuple(rgba) for code, rgba in enumerate(legend.color_table.tolist())}
            dataset.write_colormap(1, colors)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".aux.xml")


def _category_names(legend: Legend) -> str:
    """GDAL's auxiliary file with one name per code; rasterio has no way to set them."""
    names = dict(zip(legend.codes, legend.names, strict=True))
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    for code in range(max(names) + 1):
        ElementTree.SubElement(categories, "Category").text = names.get(code, "")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")
