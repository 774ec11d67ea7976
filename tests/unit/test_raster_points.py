"""Reference points, from whatever vector file they come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from shapely import LineString, Point

from terrafine.errors import LegendError, RasterError
from terrafine.legend import SEVEN
from terrafine.raster import Points, is_vector, read_points
from terrafine.spec import ReferenceSpec
from tests.scenes import write_raster

PLACES = [Point(117.0, 39.75), Point(117.1, 39.8), Point(116.9, 39.7)]


def frame(**columns: Any) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(
        columns or {"class": [10, 50, 80]}, geometry=PLACES, crs="EPSG:4326"
    )


def write(root: Path, table: geopandas.GeoDataFrame, name: str = "p.gpkg") -> Path:
    table.to_file(root / name)
    return root / name


def read(root: Path, name: str = "p.gpkg", **options: Any) -> Points:
    return read_points(ReferenceSpec(file=name, **options), SEVEN, root)


def refusal(root: Path, name: str = "p.gpkg", **options: Any) -> str:
    with pytest.raises((RasterError, LegendError)) as error:
        read(root, name, **options)
    assert str(error.value).startswith(str(root / name))
    return str(error.value)


@pytest.mark.parametrize("name", ["p.gpkg", "p.geojson", "p.shp", "p.fgb", "p.parquet"])
def test_points_come_from_any_vector_file(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        frame().to_parquet(tmp_path / name)
    else:
        write(tmp_path, frame(), name)
    assert is_vector(tmp_path / name)
    points = read(tmp_path, name)
    assert len(points) == 3
    assert points.crs == "EPSG:4326"
    order = np.argsort(points.x)  # FlatGeobuf sorts its features
    assert points.codes[order].tolist() == [5, 1, 0], "wetland is in no class"
    assert points.y[order].tolist() == [39.7, 39.75, 39.8]


def test_a_raster_is_no_vector_file(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", np.ones((4, 4), np.uint8), nodata=0)
    assert not is_vector(tmp_path / "a.tif")
    assert not is_vector(tmp_path / "gone.gpkg")


def test_points_go_into_the_maps_crs(tmp_path: Path) -> None:
    write(tmp_path, frame())
    utm = read(tmp_path).to_crs("EPSG:32650")
    assert utm.crs == "EPSG:32650"
    assert utm.x[0] == pytest.approx(500_000, abs=1e-6), "the zone's middle meridian"
    assert utm.codes.tolist() == [1, 0, 5]


def test_the_class_stands_in_the_column_that_the_spec_names(tmp_path: Path) -> None:
    write(tmp_path, frame(code=[10, 50, 80], who=["a", "b", "c"]))
    assert read(tmp_path, class_column="code").codes.tolist() == [1, 0, 5]
    message = refusal(tmp_path)
    assert "no column 'class'; it has code, who" in message
    assert "reference.class_column" in message
    assert "point 1 has class 'a'" in refusal(tmp_path, class_column="who")


def test_a_point_without_a_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path, frame(**{"class": [10, None, 80]}))
    assert "point 2 has class" in refusal(tmp_path)


def test_unknown_codes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, frame(**{"class": [10, 11, 80]}))
    assert "11 (1 pixels) are not in crosswalk 'FROM-GLC10'" in refusal(tmp_path)


def test_points_need_a_crs(tmp_path: Path) -> None:
    frame().set_crs(None, allow_override=True).to_file(tmp_path / "p.shp")
    assert "no CRS; set reference.crs" in refusal(tmp_path, "p.shp")
    assert read(tmp_path, "p.shp", crs="EPSG:4326").crs == "EPSG:4326"


def test_other_geometries_are_refused(tmp_path: Path) -> None:
    table = frame()
    table.loc[1, "geometry"] = LineString([(0, 0), (1, 1)])
    write(tmp_path, table)
    assert "LineString, Point; write their centroids" in refusal(tmp_path)
    table.loc[1, "geometry"] = None
    write(tmp_path, table, "e.gpkg")
    assert "empty geometries" in refusal(tmp_path, "e.gpkg")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path, "gone.gpkg")
    (tmp_path / "bad.gpkg").write_text("no database")
    assert "cannot be read as a vector file" in refusal(tmp_path, "bad.gpkg")
    (tmp_path / "t.csv").write_text("class,lon,lat\n10,117,39\n")
    assert "no geometry" in refusal(tmp_path, "t.csv")
    write(tmp_path, frame().iloc[:0], "none.gpkg")
    assert "holds no point" in refusal(tmp_path, "none.gpkg")
