"""Label products: every image pixel gets the class of the product's pixel at that place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine

from terrafine.errors import LegendError, RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import CROSSWALKS, SEVEN
from terrafine.raster import (
    ClassRaster,
    check_overlap,
    majority,
    open_class_raster,
    open_mosaics,
)
from terrafine.spec import ImagerySpec, LabelSource, load_spec
from tests.scenes import CRS, TRANSFORM, write_raster

UTM = PixelGrid(CRS, 3.0, 3.0, 0.0, 0.0)
# 10 m in degrees, the lattice of a global product, around the generated scene's corner.
TO_LONLAT = pyproj.Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)
LON, LAT = TO_LONLAT.transform(TRANSFORM.c, TRANSFORM.f)
DEGREES = Affine(9e-5, 0, LON - 0.004, 0, -9e-5, LAT + 0.004)
SCENE = UTM.window(TRANSFORM, (300, 400), where="scene")


def codes(height: int = 200, width: int = 300, seed: int = 0) -> np.ndarray:
    """FROM-GLC10 codes at random: neighbours differ, so that a shift by one pixel shows."""
    choices = np.array([10, 20, 30, 60, 80, 90], np.uint8)
    return np.random.default_rng(seed).choice(choices, (height, width))


def opened(root: Path, array: np.ndarray, *, source: Any = None, **profile: Any) -> ClassRaster:
    defaults = {"nodata": 0, "crs": "EPSG:4326", "transform": DEGREES}
    write_raster(root / "l.tif", array, **{**defaults, **profile})
    return open_class_raster(LabelSource(file="l.tif", **(source or {})), SEVEN, root)


def refusal(root: Path, array: np.ndarray, **options: Any) -> str:
    with pytest.raises((RasterError, LegendError)) as error:
        opened(root, array, **options).read(UTM, SCENE)
    return str(error.value)


def expected_at(array: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Legend codes of a lon/lat product at points, worked out without GDAL."""
    cols, rows = (np.floor(v).astype(int) for v in ~DEGREES @ (lon, lat))
    inside = (rows >= 0) & (rows < array.shape[0]) & (cols >= 0) & (cols < array.shape[1])
    out = np.zeros(lon.shape, np.uint8)
    out[inside] = CROSSWALKS["FROM-GLC10"].apply(array[rows[inside], cols[inside]], where="")
    return out


def test_a_label_lies_where_the_image_pixel_lies_also_across_crss(tmp_path: Path) -> None:
    array = codes()
    labels = opened(tmp_path, array)
    labels_HW = labels.read(UTM, SCENE)
    rows, cols = np.mgrid[: SCENE.height, : SCENE.width]
    x, y = UTM.transform(SCENE) @ (cols + 0.5, rows + 0.5)
    lon, lat = TO_LONLAT.transform(x, y)
    # PROJ and GDAL may differ about a centre that lies on the edge of a label, to a micrometre
    col, row = ~DEGREES @ (lon, lat)
    on_edge = np.minimum(abs(col - np.rint(col)), abs(row - np.rint(row))) < 1e-5
    assert on_edge.mean() < 1e-3
    assert ((labels_HW == expected_at(array, lon, lat)) | on_edge).all()
    assert len(np.unique(labels_HW)) == 6, "the scene lies inside the product"


def test_a_known_place_has_its_class_in_image_and_product(tmp_path: Path) -> None:
    array = np.full((200, 300), 30, np.uint8)
    array[60, 80] = 80
    labels = opened(tmp_path, array)
    lon, lat = DEGREES @ (80.5, 60.5)
    x, y = TO_LONLAT.transform(lon, lat, direction="INVERSE")
    row, col = UTM.pixel_of(x, y)
    assert labels.read(UTM, Window(row, col, 1, 1)).tolist() == [[5]]
    around = labels.read(UTM, Window(row, col, 1, 1).buffered(6))
    assert 6 <= (around == 5).sum() <= 16, "one pixel of 10 m is about ten of 3 m"


def test_a_pixel_has_the_same_label_whichever_window_asks(tmp_path: Path) -> None:
    labels = opened(tmp_path, codes())
    whole = labels.read(UTM, SCENE)
    for tile in SCENE.tiles(64):
        part = tile.intersection(SCENE)
        assert part is not None
        assert (labels.read(UTM, part) == whole[part.slices(within=SCENE)]).all()


def test_outside_the_product_and_at_its_nodata_there_is_no_class(tmp_path: Path) -> None:
    array = codes(60, 60)
    array[20:30, 20:30] = 0
    transform = TRANSFORM @ Affine.scale(3)
    labels = opened(tmp_path, array, crs=CRS, transform=transform)
    window = UTM.window(TRANSFORM, (180, 180), where="product")
    around = labels.read(UTM, window.buffered(30))
    inside = np.zeros((240, 240), bool)
    inside[30:210, 30:210] = True
    inside[30 + 60 : 30 + 90, 30 + 60 : 30 + 90] = False
    assert ((around > 0) == inside).all()


def test_a_class_numbered_0_is_told_from_what_lies_outside(tmp_path: Path) -> None:
    array = np.zeros((60, 60), np.uint8)
    array[30:] = 1
    labels = opened(
        tmp_path,
        array,
        crs=CRS,
        transform=TRANSFORM,
        nodata=None,
        source={"crosswalk": "Dynamic-World"},
    )
    found = labels.read(UTM, labels.window.buffered(2))
    assert np.unique(found[2:32, 2:62]).tolist() == [4], "0 is water in Dynamic World"
    assert np.unique(found[32:62, 2:62]).tolist() == [2]
    assert not found[:2].any()


@pytest.mark.parametrize(
    ("dtype", "stated", "given"),
    [
        ("uint8", 255, None),
        ("uint8", None, 255),
        ("float32", -99999, None),
        ("float32", float("nan"), None),
        ("float32", None, float("nan")),
        ("int16", -1, None),
        ("uint16", 65535, None),
    ],
)
def test_missing_labels_are_those_of_the_spec_or_the_file(
    tmp_path: Path, dtype: str, stated: float | None, given: float | None
) -> None:
    array = np.full((30, 30), 3, dtype)
    array[4, 5] = stated if stated is not None else given
    labels = opened(tmp_path, array, nodata=stated, source={"crosswalk": {3: 1}, "nodata": given})
    found = labels.read(labels.grid, labels.window)
    assert np.argwhere(found == 0).tolist() == [[4, 5]]
    assert (found.ravel() == 1).sum() == 899


def test_a_nodata_value_that_is_a_class_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, codes() * 0 + 4, source={"crosswalk": "Dynamic-World"})
    assert "the file calls 0 nodata" in message
    assert "'Dynamic-World'" in message
    assert "set labels.nodata" in message


def test_unknown_codes_are_refused_with_their_place(tmp_path: Path) -> None:
    array = codes()
    array[90:95, 80:85] = 77
    message = refusal(tmp_path, array)
    assert message.startswith(f"{tmp_path / 'l.tif'} (within x 499410..500610, y ")
    assert "77 (" in message
    assert "'FROM-GLC10'" in message
    assert "add the codes to it" in message


def test_the_spec_overrides_the_crs_of_the_product(tmp_path: Path) -> None:
    array = codes(60, 60)
    wrong = {"crs": "EPSG:32633", "transform": TRANSFORM}
    labels = opened(tmp_path, array, source={"crs": CRS}, **wrong)
    assert labels.overlaps(UTM, SCENE)
    assert not opened(tmp_path, array, **wrong).overlaps(UTM, SCENE)
    message = refusal(tmp_path, array, crs=None, transform=TRANSFORM)
    assert "no CRS; set labels.crs" in message


def test_a_product_is_one_band(tmp_path: Path) -> None:
    message = refusal(tmp_path, np.stack([codes(), codes()]))
    assert "wrong number of bands" in message
    assert "this has 2" in message


def test_a_missing_or_truncated_product_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match=r"gone\.tif: no such file"):
        open_class_raster(LabelSource(file="gone.tif"), SEVEN, tmp_path)
    opened(tmp_path, codes())
    data = (tmp_path / "l.tif").read_bytes()
    (tmp_path / "l.tif").write_bytes(data[:-500])
    with pytest.raises(RasterError, match=r"l\.tif: truncated: the block of band 1"):
        open_class_raster(LabelSource(file="l.tif"), SEVEN, tmp_path)


def test_image_and_product_must_overlap(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", np.ones((1, 300, 400), np.uint16), nodata=0)
    imagery = ImagerySpec.model_validate(
        {"scenes": [{"name": "a", "files": ["a.tif"]}], "bands": ["red"]}
    )
    mosaics = open_mosaics(imagery, tmp_path).values()
    check_overlap(opened(tmp_path, codes()), mosaics)
    elsewhere = opened(tmp_path, codes(), transform=Affine.translation(3, 0) @ DEGREES)
    with pytest.raises(RasterError) as error:
        check_overlap(elsewhere, mosaics)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'l.tif'}: the label product covers lon 119.98")
    assert "scene a lon 116.99" in message
    assert "labels.crs / imagery.crs" in message


@pytest.mark.parametrize("factor", [1.0, 3.0, 10 / 3])
def test_majority_takes_the_most_frequent_class(factor: float) -> None:
    fine_HW = np.full((100, 90), 2, np.uint8)
    fine_HW[:50] = 7
    fine_HW[:, 80:] = 0
    fine_HW[::7, ::7] = 4
    product_HW, grid, window = majority(fine_HW, UTM, Window(10, 20, 100, 90), factor)
    assert window.shape == tuple(int(np.ceil(side / factor)) for side in (100, 90))
    assert grid.bounds(window)[0] == UTM.bounds(Window(10, 20, 100, 90))[0]
    assert grid.bounds(window)[3] == UTM.bounds(Window(10, 20, 100, 90))[3]
    assert grid.dx == pytest.approx(3 * factor)
    if factor == 1:
        assert (product_HW == fine_HW).all()
    else:
        last = int(80 // factor)
        assert (product_HW[: int(50 // factor), :last] == 7).all()
        assert (product_HW[int(np.ceil(50 / factor)) :, :last] == 2).all()
        edge_HW = product_HW[:, last + 1 :]
        assert set(np.unique(edge_HW)) == {0, 4}, "one 4 among many 0 wins: 0 is no class"


@pytest.mark.shared
def test_zion_lies_on_its_product(zion: Path) -> None:
    spec = load_spec(Path(__file__).parents[2] / "examples" / "zion.yaml")
    mosaic = open_mosaics(spec.imagery, zion)["epsg32612"]
    labels = open_class_raster(spec.labels, SEVEN, zion)
    assert labels.grid.crs == "EPSG:26912"
    check_overlap(labels, [mosaic])
    window = Window(mosaic.window.row + 600, mosaic.window.col + 400, 200, 200)
    image_CHW, source_HW = mosaic.read(window)
    labels_HW = labels.read(mosaic.grid, window)
    assert (source_HW == 1).all()
    with rasterio.open(zion / "landsat_b4.tif") as file:
        assert (image_CHW[0] == file.read(1)[600:800, 400:600]).all(), "red comes first"
    # an independent way to the same class: the product's own pixel under the pixel's centre
    with rasterio.open(zion / "nlcd2011.tif") as file:
        native, inverse = file.read(1), ~file.transform
    for row, col in [(0, 0), (57, 181), (199, 199), (120, 3)]:
        x, y = mosaic.grid.transform(window) @ (col + 0.5, row + 0.5)
        c, r = inverse @ (x, y)
        code = native[int(r), int(c)]
        assert labels_HW[row, col] == labels.crosswalk.mapping[code]
