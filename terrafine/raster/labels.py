"""Categorical rasters (label products, reference maps) on the imagery's grid."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.warp
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import NO_CLASS, Crosswalk, Legend, UInt8Array
from terrafine.raster.files import (
    Place,
    crs_of,
    opened,
    placement,
    reading,
    require_raster,
)
from terrafine.raster.mosaic import Mosaic
from terrafine.spec import LabelSource, resolve_in

# Marks, inside the warp, pixels that the product does not cover; no product has it as a code.
_OUTSIDE = -1

# Largest error of GDAL's approximated reprojection, in pixels. GDAL's own 0.125 moves one label
# pixel in two hundred, and other ones in another window; this costs 0.1 s per 1024 x 1024 and
# gives every pixel the same label whichever window asks.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ClassRaster:
    """A categorical raster seen through its crosswalk; nothing is read before :meth:`read`.

    ``grid``, ``window``: where the raster itself lies. ``nodata``: its value for missing pixels,
    or None.
    """

    path: Path
    crosswalk: Crosswalk
    grid: PixelGrid
    window: Window
    nodata: float | None

    def read(self, grid: PixelGrid, window: Window) -> UInt8Array:
        """(H, W) uint8 legend codes on the image's grid, by nearest neighbour.

        0 outside the product, at its nodata and where the crosswalk says to ignore. LegendError
        on codes the crosswalk does not know, RasterError when the file cannot be read.
        """
        codes_HW = self._warped(grid, window)
        known_HW = codes_HW != _OUTSIDE
        labels_HW = np.full(window.shape, NO_CLASS, np.uint8)
        west, south, east, north = (f"{edge:.8g}" for edge in grid.bounds(window))
        where = f"{self.path} (within x {west}..{east}, y {south}..{north} in {grid.crs})"
        labels_HW[known_HW] = self.crosswalk.apply(codes_HW[known_HW], where=where)
        return labels_HW

    def overlaps(self, grid: PixelGrid, window: Window) -> bool:
        """Whether a window of another grid touches the raster."""
        left, bottom, right, top = self._bounds_in(grid.crs)
        other = grid.bounds(window)
        return left < other[2] and right > other[0] and bottom < other[3] and top > other[1]

    def lonlat(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees."""
        return self._bounds_in("EPSG:4326")

    def _bounds_in(self, crs: str) -> tuple[float, float, float, float]:
        return _bounds(self.grid.crs, crs, self.grid.bounds(self.window), self.path)

    def _warped(self, grid: PixelGrid, window: Window) -> npt.NDArray[Any]:
        """Product codes on the image's grid, ``_OUTSIDE`` where there are none."""
        with opened(self.path) as dataset, reading(self.path), ExitStack() as stack:
            dtype = "float64" if np.dtype(dataset.dtypes[0]).kind == "f" else "int32"
            warped = stack.enter_context(
                WarpedVRT(
                    dataset,
                    src_crs=self.grid.crs,
                    crs=grid.crs,
                    transform=grid.transform(window),
                    height=window.height,
                    width=window.width,
                    resampling=Resampling.nearest,
                    dtype=dtype,
                    src_nodata=_OUTSIDE if self.nodata is None else self.nodata,
                    nodata=_OUTSIDE,
                    tolerance=_TOLERANCE,
                )
            )
            codes: npt.NDArray[Any] = warped.read(1)
        return codes


def open_class_raster(source: LabelSource, legend: Legend, root: Path) -> ClassRaster:
    """Check a label product's file and say where it lies.

    Its missing pixels are those of ``source.nodata``, else of the file, else of the crosswalk.
    RasterError when the file is missing, cut off, no raster, not one band, or without a CRS
    (``source.crs`` overrides it); SpecError / LegendError when the crosswalk does not fit.
    """
    path = resolve_in(root, source.file)
    require_raster(path)
    crosswalk = source.resolve_crosswalk(legend)
    where = f"labels {path}"
    with opened(path) as dataset:
        if dataset.count != 1:
            raise RasterError(
                f"{where}: wrong number of bands: a categorical raster has one, this has "
                f"{dataset.count}; extract the class band with gdal_translate -b"
            )
        crs = crs_of(dataset, source.crs, where=where, key="labels.crs (or reference.crs)")
        grid, window = placement(dataset, crs, where=where)
        stated = dataset.nodata
    clash = any(target and code == stated for code, target in crosswalk.mapping.items())
    if source.nodata is None and clash:
        raise RasterError(
            f"{where}: the file calls {stated:g} nodata, in crosswalk {crosswalk.name!r} it is a "
            "class; set labels.nodata to the value of missing pixels"
        )
    nodata = next((n for n in (source.nodata, stated, crosswalk.nodata) if n is not None), None)
    return ClassRaster(path, crosswalk, grid, window, nodata)


def check_overlap(labels: ClassRaster, mosaics: Iterable[Mosaic]) -> None:
    """Raise RasterError when the product touches no scene."""
    places = []
    for mosaic in mosaics:
        for scene in mosaic.scenes:
            if labels.overlaps(scene.grid, scene.window):
                return
            bounds = _bounds(
                scene.grid.crs, "EPSG:4326", scene.grid.bounds(scene.window), scene.where
            )
            places.append(f"scene {scene.name} {_degrees(bounds)}")
    raise RasterError(
        f"{labels.path}: the label product covers {_degrees(labels.lonlat())} and no scene "
        f"({'; '.join(places[:4])}); give the product's tile of this place, or correct "
        "labels.crs / imagery.crs"
    )


def _bounds(
    source: str, target: str, bounds: tuple[float, float, float, float], where: Place
) -> tuple[float, float, float, float]:
    with reading(where):
        left, bottom, right, top = rasterio.warp.transform_bounds(source, target, *bounds)
    if not all(map(math.isfinite, (left, bottom, right, top))):
        raise RasterError(
            f"{where}: its extent {bounds} in {source[:40]} cannot be expressed in {target[:40]}; "
            "correct the CRS in the spec"
        )
    return left, bottom, right, top


def _degrees(bounds: tuple[float, float, float, float]) -> str:
    west, south, east, north = bounds
    return f"lon {west:.3f}..{east:.3f} lat {south:.3f}..{north:.3f}"
