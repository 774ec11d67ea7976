"""Named regions (provinces, counties): which one each pixel of a grid lies in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.raster.region import LONLAT, Region, transformer
from terrafine.raster.vector import read_vector

ELSEWHERE = "elsewhere"

_MOST = 65534


@dataclass(frozen=True)
class Regions:
    """Polygons with a name each. Where they overlap, the first one in the file has the pixel."""

    names: tuple[str, ...]
    outlines: tuple[Region, ...]

    @classmethod
    def read(cls, path: Path, *, column: str | None = None, key: str = "--regions") -> Regions:
        """The polygons of a vector file, by the name in ``column``; RasterError otherwise.

        Default for ``column``: "name", else the file's first column of text. Polygons of one name
        are one region.
        """
        from pandas.api.types import is_string_dtype  # slow to import

        frame = read_vector(path, what="polygons", key=key)
        if frame.crs is None:
            raise RasterError(f"{path}: the file states no CRS; write the regions with one")
        frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"]) & ~frame.is_empty]
        texts = [c for c in frame.columns if is_string_dtype(frame[c])]
        found = column or ("name" if "name" in frame.columns else next(iter(texts), None))
        if found is None or found not in frame.columns:
            raise RasterError(
                f"{path}: no column {column or 'name'!r} names the regions; it has "
                f"{', '.join(c for c in frame.columns if c != frame.geometry.name) or 'none'}"
            )
        frame = frame.to_crs(LONLAT)
        polygons: dict[str, list[Any]] = {}
        for name, polygon in zip(frame[found], frame.geometry, strict=True):
            polygons.setdefault(str(name), []).append(shapely.make_valid(polygon))
        if not 0 < len(polygons) <= _MOST:
            raise RasterError(f"{path}: holds {len(polygons)} regions; give 1 to {_MOST} polygons")
        return cls(
            tuple(polygons),
            tuple(Region(shapely.union_all(parts), str(path)) for parts in polygons.values()),
        )

    def number(self, grid: PixelGrid, window: Window) -> npt.NDArray[np.uint16]:
        """(H, W): 1-based number of the region that holds a pixel's centre, 0 for none."""
        around = grid.bounds(window)
        lonlat = transformer(grid.crs, LONLAT).transform_bounds(*around, densify_pts=21)
        shapes = []
        # burnt last to first: the first region stays on top
        for index in sorted(self._tree.query(shapely.box(*lonlat)).tolist(), reverse=True):
            outline = self.outlines[index].near(grid.crs, around)
            if outline.intersects(shapely.box(*around)):
                shapes.append((outline, index + 1))
        if not shapes:
            return np.zeros(window.shape, np.uint16)
        burnt: npt.NDArray[np.uint16] = rasterize(
            shapes, out_shape=window.shape, transform=grid.transform(window), dtype="uint16"
        )
        return burnt

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree([region.outline for region in self.outlines])
