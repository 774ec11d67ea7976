"""The STAC item: valid, at the right place on the Earth, with files that can be checked."""

from __future__ import annotations

import hashlib
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pystac
import pytest
from pyproj import Transformer
from shapely.geometry import Point, shape

from terrafine.errors import TerrafineError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.publish.geography import pixel_area_km2
from terrafine.publish.stac import item

GRID = PixelGrid("EPSG:32612", 30.0, 30.0, 15.0, 15.0)
WINDOW = Window(-137_000, 9_000, 1000, 2000)
MADE = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "landcover.tif").write_bytes(b"cog")
    (tmp_path / "report.html").write_text("<html>")
    (tmp_path / "map.icechunk").mkdir()
    return tmp_path


def make(folder: Path, **more: object) -> pystac.Item:
    options: dict[str, object] = {
        "files": {
            "landcover": folder / "landcover.tif",
            "report": folder / "report.html",
            "map-store": folder / "map.icechunk",
        },
        "grid": GRID,
        "window": WINDOW,
    }
    return item(
        identifier="zion-v1",
        title="Zion",
        created=MADE,
        legend=SEVEN,
        folder=folder,
        provenance={"spec_sha256": "ab"},
        **{**options, **more},
    )


def core_errors(made: pystac.Item) -> list[str]:
    """Against the core schema that pystac carries; extension schemas are only on the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pystac.validation.local_validator import LocalValidator

        validator = LocalValidator().item_validator()
    return [error.message for error in validator.iter_errors(made.to_dict())]


def test_item_holds_to_the_core_schema_and_survives_a_round_trip(folder: Path) -> None:
    made = make(folder)

    assert core_errors(made) == []
    made.save_object(dest_href=str(folder / "item.json"), include_self_link=False)
    again = pystac.Item.from_file(str(folder / "item.json"))
    assert again.to_dict()["properties"] == made.to_dict()["properties"]
    assert again.assets.keys() == made.assets.keys()


def test_a_dated_scene_is_valid_too(folder: Path) -> None:
    first, last = datetime(2015, 8, 1, tzinfo=UTC), datetime(2015, 8, 18, tzinfo=UTC)

    assert core_errors(make(folder, observed=(first, last))) == []
    assert make(folder, observed=last).datetime == last
    assert "not known" not in make(folder, observed=last).properties["description"]
    assert "not known" in make(folder).properties["description"]


def test_outline_holds_every_corner_and_is_counter_clockwise(folder: Path) -> None:
    made = make(folder)
    outline = shape(made.geometry)
    to_wgs84 = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True)
    left, bottom, right, top = GRID.bounds(WINDOW)

    assert outline.exterior.is_ccw
    assert outline.is_valid
    for corner in ((left, bottom), (left, top), (right, bottom), (right, top)):
        longitude, latitude = to_wgs84.transform(*corner)
        assert outline.buffer(1e-6).contains(Point(longitude, latitude))
    west, south, east, north = made.bbox
    assert (west, south, east, north) == pytest.approx(outline.bounds)


def test_projection_says_where_every_pixel_lies(folder: Path) -> None:
    properties = make(folder).properties

    assert properties["proj:code"] == "EPSG:32612"
    assert properties["proj:shape"] == [1000, 2000]
    assert properties["proj:transform"] == list(GRID.transform(WINDOW))[:6]


def test_a_window_across_the_antimeridian_becomes_two_parts(folder: Path) -> None:
    grid = PixelGrid("EPSG:32660", 1000.0, 1000.0, 0.0, 0.0)
    made = make(folder, grid=grid, window=Window(-1100, 700, 50, 150))

    assert made.geometry is not None
    assert made.geometry["type"] == "MultiPolygon"
    assert made.bbox is not None
    assert made.bbox[0] > 170 > -170 > made.bbox[2]
    assert core_errors(made) == []


def test_files_carry_size_and_multihash_and_folders_do_not(folder: Path) -> None:
    assets = make(folder).to_dict()["assets"]

    digest = hashlib.sha256(b"cog").hexdigest()
    assert assets["landcover"]["file:checksum"] == "1220" + digest
    assert assets["landcover"]["file:size"] == 3
    assert assets["landcover"]["href"] == "./landcover.tif"
    assert "file:checksum" not in assets["map-store"]


def test_classes_are_those_of_the_legend_and_nodata_is_told_apart(folder: Path) -> None:
    classes = make(folder).to_dict()["assets"]["landcover"]["classification:classes"]

    assert [c["value"] for c in classes] == [*SEVEN.codes, 0, 255]
    assert [c["color_hint"] for c in classes[:7]] == [c.color[1:].upper() for c in SEVEN.classes]
    assert [c.get("nodata", False) for c in classes] == [False] * 7 + [True] * 2
    assert classes[6]["name"] == "snow-ice"


def test_a_missing_or_foreign_file_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "landcover.tif"
    with pytest.raises(TerrafineError, match="publish it first"):
        make(folder, files={"landcover": folder / "no.tif"})
    elsewhere.write_bytes(b"x")
    with pytest.raises(TerrafineError, match="outside"):
        make(folder, files={"landcover": elsewhere})
    with pytest.raises(TerrafineError, match="known: landcover"):
        make(folder, files={"thumbnail": elsewhere})


def test_pixel_area_is_in_square_kilometres_in_any_crs() -> None:
    feet = PixelGrid("EPSG:2264", 100.0, 100.0, 0.0, 0.0)  # US survey feet
    degrees = PixelGrid("EPSG:4326", 0.001, 0.001, 0.0, 0.0)
    at_60_north = Window(-60_000, 10_000, 10, 10)

    assert pixel_area_km2(GRID, WINDOW) == pytest.approx(0.0009)
    assert pixel_area_km2(feet, WINDOW) == pytest.approx((100 * 0.3048006) ** 2 / 1e6)
    assert pixel_area_km2(degrees, at_60_north) == pytest.approx(0.0062, rel=0.01)
