"""Reference points in the paper's class counts, as interpreters would have left them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import geopandas
import numpy as np
import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError

from terrafine.accuracy.published import DONG_PRODUCT_10M
from terrafine.errors import DatasetError
from terrafine.geometry import PixelGrid, Window
from terrafine.landscape.canvas import BoolArray
from terrafine.legend import SEVEN, UInt8Array

# Cropland 336, woodland 437, grassland 303, water 97, impervious 191, bare 566, snow/ice 10.
PAPER_COUNTS: Final = tuple(DONG_PRODUCT_10M.sum(axis=0).tolist())


def draw_points(
    truth_HW: UInt8Array,
    usable_HW: BoolArray,
    grid: PixelGrid,
    window: Window,
    rng: np.random.Generator,
) -> geopandas.GeoDataFrame:
    """Pixels drawn at random within each class, as many as the paper has.

    Columns ``class`` (code) and ``name``; geometry the pixel's middle. Where a class has fewer
    usable pixels than the paper has points, all of them are taken.
    """
    codes, rows, cols = [], [], []
    for code, count in zip(SEVEN.codes, PAPER_COUNTS, strict=True):
        place = np.flatnonzero(((truth_HW == code) & usable_HW).ravel())
        chosen = rng.choice(place, min(count, len(place)), replace=False)
        chosen.sort()
        row, col = np.divmod(chosen, truth_HW.shape[1])
        codes.append(np.full(len(chosen), code))
        rows.append(row)
        cols.append(col)
    drawn = np.concatenate(codes)
    x = grid.x0 + grid.dx * (window.col + np.concatenate(cols) + 0.5)
    y = grid.y0 - grid.dy * (window.row + np.concatenate(rows) + 0.5)
    names = dict(zip(SEVEN.codes, SEVEN.names, strict=True))
    return geopandas.GeoDataFrame(
        {"class": drawn.astype(np.int32), "name": [names[code] for code in drawn.tolist()]},
        geometry=geopandas.points_from_xy(x, y),
        crs=grid.crs,
    )


def write_points(path: Path, points: geopandas.GeoDataFrame) -> None:
    """Write a GeoPackage, whole or not at all; DatasetError when the folder refuses it."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    # GeoPackages state when they were written; the same seed is to give the same bytes.
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2020-01-01T00:00:00Z"})
    try:
        temporary.unlink(missing_ok=True)
        points.to_file(temporary, driver="GPKG", layer="reference")
        temporary.replace(path)
    except (DataSourceError, DataLayerError, OSError) as error:
        raise DatasetError(
            f"{path}: the points cannot be written ({' '.join(str(error).split())}); free space "
            "there or choose another folder"
        ) from error
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
        temporary.unlink(missing_ok=True)
