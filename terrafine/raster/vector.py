"""Vector files: points, polygons and tables of footprints, as geopandas reads them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from terrafine.errors import RasterError

if TYPE_CHECKING:
    import geopandas

PARQUET = (".parquet", ".geoparquet")


def read_vector(path: Path, *, what: str, key: str) -> geopandas.GeoDataFrame:
    """Features of a vector file with a geometry; RasterError when it is missing, none, or empty.

    ``what`` the features are ("points"), and the spec's ``key`` that names the file.
    """
    # slow to import, and a run without vector files needs none of it
    import geopandas
    from pyogrio.errors import DataLayerError, DataSourceError

    if not path.exists():
        raise RasterError(
            f"{path}: no such file; check {key} and the data root "
            "(the spec's folder, --data or TERRAFINE_DATA)"
        )
    if path.suffix.lower() in PARQUET:
        return read_table(path.read_bytes(), where=str(path), what=what)
    try:
        frame = geopandas.read_file(path)
    except (DataSourceError, DataLayerError, OSError, ValueError) as error:
        raise _unreadable(str(path), what, error) from error
    return _checked(frame, str(path), what)


def read_table(data: bytes, *, where: str, what: str) -> geopandas.GeoDataFrame:
    """Features of the bytes of a GeoParquet; RasterError when they are none."""
    import geopandas
    import pyarrow

    try:
        frame = geopandas.read_parquet(io.BytesIO(data))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(where, what, error) from error
    return _checked(frame, where, what)


def _unreadable(where: str, what: str, error: Exception) -> RasterError:
    return RasterError(
        f"{where}: cannot be read as a vector file ({' '.join(str(error).split())}); give "
        f"{what} as GeoPackage, GeoJSON, FlatGeobuf, Shapefile or GeoParquet"
    )


def _checked(frame: geopandas.GeoDataFrame, where: str, what: str) -> geopandas.GeoDataFrame:
    import geopandas

    if not isinstance(frame, geopandas.GeoDataFrame):
        raise RasterError(
            f"{where}: the table has no geometry; write {what} as GeoPackage or GeoJSON"
        )
    if frame.empty:
        raise RasterError(f"{where}: holds no {what}; give a file that does")
    return frame
