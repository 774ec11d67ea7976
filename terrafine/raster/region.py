"""Regions: polygons in longitude and latitude, held against rectangles in any CRS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.raster.files import crs_text, parse_crs
from terrafine.raster.vector import read_vector
from terrafine.spec import resolve_in

LONLAT = "EPSG:4326"
Bounds = tuple[float, float, float, float]

# Degrees between the vertices of an edge: a straight edge in degrees is a curve in UTM.
_STEP = 0.05


@dataclass(frozen=True)
class Region:
    """A part of the Earth. ``outline``: polygons in degrees (WGS 84); ``where``: its file."""

    outline: Any
    where: str

    @classmethod
    def read(cls, name: str, root: Path, *, key: str) -> Region:
        """All polygons of a vector file under ``root``, which the spec's ``key`` names.

        RasterError when there are none.
        """
        path = resolve_in(root, name)
        frame = read_vector(path, what="polygons", key=key)
        if frame.crs is None:
            raise RasterError(
                f"{path}: the file states no CRS; write the region with one, e.g. EPSG:4326"
            )
        areas = frame.geometry[frame.geom_type.isin(["Polygon", "MultiPolygon"])]
        areas = areas[~areas.is_empty]
        if areas.empty:
            raise RasterError(f"{path}: holds no polygon; a region is one or more polygons")
        outline = shapely.union_all(shapely.make_valid(areas.to_crs(LONLAT).to_numpy()))
        if not all(map(math.isfinite, outline.bounds)):
            raise RasterError(f"{path}: cannot be expressed in degrees; correct its CRS")
        return cls(outline, str(path))

    @property
    def bounds(self) -> Bounds:
        """(west, south, east, north) in degrees."""
        west, south, east, north = self.outline.bounds
        return west, south, east, north

    def touches(
        self, crs: str, boxes: Sequence[Bounds] | npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """(n,) whether each rectangle (left, bottom, right, top) of ``crs`` touches it."""
        boxes_N4 = np.asarray(boxes, np.float64).reshape(-1, 4)
        if not len(boxes_N4):
            return np.zeros(0, bool)
        left, bottom = boxes_N4[:, :2].min(axis=0).tolist()
        right, top = boxes_N4[:, 2:].max(axis=0).tolist()
        outline = self.near(crs, (left, bottom, right, top))
        shapely.prepare(outline)
        return np.asarray(shapely.intersects(outline, shapely.box(*boxes_N4.T)))

    def window(self, grid: PixelGrid) -> Window | None:
        """The pixels around all of it that lies where the grid's CRS is used, or a degree beside;
        None where nothing does."""
        outline, area = self.outline, pyproj.CRS.from_user_input(grid.crs).area_of_use
        # a CRS across the date line is taken as a whole
        if area is not None and area.west < area.east:
            west, south, east, north = area.bounds
            outline = shapely.clip_by_rect(outline, west - 1, south - 1, east + 1, north + 1)
        if outline.is_empty:
            return None
        left, bottom, right, top = _bent(outline, grid.crs).bounds
        row, col = grid.pixel_of(left, top)
        stop_row, stop_col = grid.pixel_of(right, bottom)
        # a shard that touches its edge from outside is mapped, too
        return Window(row, col, stop_row - row + 1, stop_col - col + 1).buffered(1)

    def near(self, crs: str, around: Bounds) -> Any:
        """The outline in ``crs``, as far as it lies around a rectangle of it."""
        back = transformer(crs, LONLAT)
        west, south, east, north = back.transform_bounds(*around, densify_pts=41)
        outline = self.outline
        # UTM is of no use far from its zone; a zone on the date line is taken as a whole
        if west < east:
            outline = shapely.clip_by_rect(outline, west - 1, south - 1, east + 1, north + 1)
        return _bent(outline, crs)


def _bent(outline: Any, crs: str) -> Any:
    """Polygons in degrees, in another CRS."""
    forward = transformer(LONLAT, crs)
    dense = shapely.segmentize(outline, _STEP)
    return shapely.make_valid(
        shapely.transform(dense, lambda xy: np.column_stack(forward.transform(*xy.T)))
    )


def lonlat_outlines(crs: str, boxes_N4: npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
    """Rectangles (left, bottom, right, top) of ``crs`` as polygons in degrees."""
    boxes = shapely.box(*np.asarray(boxes_N4, np.float64).reshape(-1, 4).T)
    sides = boxes_N4[:, 2] - boxes_N4[:, 0]
    dense = shapely.segmentize(boxes, sides / 4)
    back = transformer(crs, LONLAT)
    return np.asarray(shapely.transform(dense, lambda xy: np.column_stack(back.transform(*xy.T))))


@lru_cache(maxsize=64)
def transformer(source: str, target: str) -> pyproj.Transformer:
    """Between two CRS, easting or longitude first."""
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=256)
def checked_crs(text: str, where: str) -> str:
    """``EPSG:<code>`` or WKT of what a file calls its CRS; RasterError when PROJ knows it not."""
    return crs_text(parse_crs(text, where=where))
