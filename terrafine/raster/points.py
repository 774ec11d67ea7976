"""Reference points from any vector file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyproj

from terrafine.errors import RasterError
from terrafine.legend import Legend, UInt8Array
from terrafine.raster.files import crs_text, parse_crs
from terrafine.raster.vector import PARQUET, read_vector
from terrafine.spec import ReferenceSpec, resolve_in

if TYPE_CHECKING:
    import geopandas

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """Reference points: ``x``, ``y`` float64 (n,) in ``crs``, ``codes`` uint8 (n,) of the legend.

    Code 0: the crosswalk ignores the point's class.
    """

    x: Float64Array
    y: Float64Array
    codes: UInt8Array
    crs: str

    def __len__(self) -> int:
        return len(self.codes)

    def to_crs(self, crs: str) -> Points:
        """The same points in another CRS."""
        transformer = pyproj.Transformer.from_crs(self.crs, crs, always_xy=True)
        x, y = transformer.transform(self.x, self.y)
        return Points(np.asarray(x, np.float64), np.asarray(y, np.float64), self.codes, crs)


def is_vector(path: Path) -> bool:
    """Whether the file holds vector layers; False for rasters and for what does not exist."""
    if path.suffix.lower() in PARQUET:
        return True
    import pyogrio  # slow to import
    from pyogrio.errors import DataSourceError

    try:
        return len(pyogrio.list_layers(path)) > 0
    except DataSourceError:
        return False


def read_points(source: ReferenceSpec, legend: Legend, root: Path) -> Points:
    """Points with the class in ``source.class_column``, mapped by the crosswalk.

    RasterError when the file is missing or no vector file, has no CRS (``source.crs`` overrides),
    holds anything but points, or lacks the column or a whole number in it; LegendError on codes
    the crosswalk does not know.
    """
    path = resolve_in(root, source.file)
    frame = read_vector(path, what="points", key="reference.file")
    crs = _crs(frame, source, path)
    empty = frame.geometry.is_empty | frame.geometry.isna()
    if empty.any() or not (frame.geom_type == "Point").all():
        kinds = ", ".join(sorted({str(kind) for kind in frame.geom_type.unique()}))
        raise RasterError(
            f"{path}: reference points must be points, one each, the file holds {kinds}"
            f"{' and empty geometries' if empty.any() else ''}; write their centroids, or "
            "give a raster"
        )
    return Points(
        x=frame.geometry.x.to_numpy(np.float64),
        y=frame.geometry.y.to_numpy(np.float64),
        codes=source.resolve_crosswalk(legend).apply(_codes(frame, source, path), where=str(path)),
        crs=crs,
    )


def _crs(frame: geopandas.GeoDataFrame, source: ReferenceSpec, path: Path) -> str:
    if source.crs is not None:
        return crs_text(parse_crs(source.crs, where="reference.crs"))
    if frame.crs is None:
        raise RasterError(
            f"{path}: the file states no CRS; set reference.crs to the one the points are in, "
            "e.g. EPSG:4326"
        )
    return crs_text(parse_crs(frame.crs.to_wkt(), where=str(path)))


def _codes(frame: geopandas.GeoDataFrame, source: ReferenceSpec, path: Path) -> Float64Array:
    import pandas  # slow to import

    column = source.class_column
    if column not in frame.columns:
        known = ", ".join(str(c) for c in frame.columns if c != frame.geometry.name)
        raise RasterError(
            f"{path}: no column {column!r}; it has {known or 'none'}; set reference.class_column"
        )
    numbers: Float64Array = pandas.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)
    if np.isnan(numbers).any():
        row = int(np.flatnonzero(np.isnan(numbers))[0])
        raise RasterError(
            f"{path}: point {row + 1} has class {frame[column].iloc[row]!r} in column {column!r}, "
            "which is no number; write the product's codes there"
        )
    return numbers
