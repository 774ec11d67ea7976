"""Maps as GeoTIFFs: in their place, in their colours, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.raster import write_geotiff
from tests.disks import small_disk

GRID = PixelGrid("EPSG:32650", 3.0, 3.0, 0.0, 1.5)
WINDOW = Window(-1_466_000, 166_400, 1100, 1300)


def landcover(seed: int = 0) -> np.ndarray:
    array_HW = np.random.default_rng(seed).integers(0, 8, WINDOW.shape, np.uint8)
    array_HW[:200] = 255
    array_HW[600:, :700] = 2
    return array_HW


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "deep" / "map.tif"
    write_geotiff(
        path, landcover(), GRID, WINDOW, nodata=255, legend=SEVEN, tags={"terrafine_run": "r1"}
    )
    return path


def test_a_map_is_a_cloud_optimised_geotiff_with_overviews(written: Path) -> None:
    with rasterio.open(written) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1) == [2, 4]
        assert file.compression.name == "deflate"
        assert file.block_shapes == [(512, 512)]


def test_a_pixel_lies_where_the_grid_says(written: Path) -> None:
    array_HW = landcover()
    with rasterio.open(written) as file:
        assert file.crs.to_epsg() == 32650
        assert file.bounds == GRID.bounds(WINDOW)
        for row, col in [(0, 0), (250, 700), (1099, 1299), (599, 699)]:
            x, y = GRID.transform(WINDOW) @ (col + 0.5, row + 0.5)
            assert GRID.pixel_of(x, y) == (WINDOW.row + row, WINDOW.col + col)
            assert next(file.sample([(x, y)]))[0] == array_HW[row, col]


def test_a_map_carries_colours_names_and_origin(written: Path) -> None:
    with rasterio.open(written) as file:
        assert file.nodata == 255
        assert file.descriptions == ("land cover",)
        assert file.tags()["terrafine_run"] == "r1"
        colors = file.colormap(1)
        for item in SEVEN.classes:
            assert colors[item.code] == (*item.rgb, 255)
    sidecar = written.with_name("map.tif.aux.xml").read_text()
    assert sidecar.count("<Category>") == 7
    assert sidecar.index("cropland") < sidecar.index("snow/ice")


def test_overviews_show_the_most_frequent_class(written: Path) -> None:
    with rasterio.open(written, overview_level=1) as file:
        small_HW = file.read(1)
    assert small_HW.shape == (275, 325)
    assert (small_HW[:49] == 255).all()
    assert (small_HW[152:, :174] == 2).all()
    # three snow, one water in the corner: the nearest pixel is water, the mean colour bare land
    array_HW = np.full(WINDOW.shape, SEVEN.code_of("snow/ice"), np.uint8)
    array_HW[::2, ::2] = SEVEN.code_of("water")
    path = written.with_name("corners.tif")
    write_geotiff(path, array_HW, GRID, WINDOW, nodata=255, legend=SEVEN)
    with rasterio.open(path, overview_level=0) as file:
        assert np.unique(file.read(1)).tolist() == [SEVEN.code_of("snow/ice")]


def test_what_is_written_reads_back(written: Path) -> None:
    with rasterio.open(written) as file:
        array_HW = file.read(1)
        assert GRID.window(file.transform, file.shape, where=str(written)) == WINDOW
    assert array_HW.dtype == np.uint8
    assert (array_HW == landcover()).all()


def test_numbers_without_a_legend_and_without_overviews(tmp_path: Path) -> None:
    source_HW = np.arange(WINDOW.height * WINDOW.width, dtype=np.uint32) % 60_000
    source_HW = source_HW.astype(np.uint16).reshape(WINDOW.shape)
    path = tmp_path / "source.tif"
    write_geotiff(path, source_HW, GRID, WINDOW, nodata=65535, legend=None, overviews=False)
    with rasterio.open(path) as file:
        assert file.overviews(1) == []
        assert (file.read(1) == source_HW).all()
    assert [p.name for p in tmp_path.iterdir()] == ["source.tif"]


def test_an_array_that_does_not_fill_its_window_is_a_bug() -> None:
    with pytest.raises(ValueError, match="does not cover"):
        write_geotiff(
            Path("x.tif"), landcover()[1:], GRID, WINDOW, nodata=255, legend=None, tags={}
        )


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "map.tif"
    with pytest.raises(RasterError, match=r"map\.tif: the GeoTIFF cannot be written to .*/file \("):
        write_geotiff(path, landcover(), GRID, WINDOW, nodata=255, legend=SEVEN)


def test_what_cannot_be_put_in_place_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "map.tif" / "inside").mkdir(parents=True)
    with pytest.raises(RasterError, match=r"map\.tif: the GeoTIFF cannot be written"):
        write_geotiff(tmp_path / "map.tif", landcover(), GRID, WINDOW, nodata=255, legend=SEVEN)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", kilobytes=512)


def test_a_full_disk_leaves_the_old_map_and_nothing_else(disk: Path) -> None:
    path = disk / "map.tif"
    small = Window(0, 0, 64, 64)
    write_geotiff(path, landcover()[500:564, :64], GRID, small, nodata=255, legend=SEVEN)
    before = path.read_bytes()
    noise_HW = np.random.default_rng(0).integers(1, 8, WINDOW.shape, np.uint8)
    with pytest.raises(RasterError) as error:
        write_geotiff(path, noise_HW, GRID, WINDOW, nodata=255, legend=SEVEN)
    assert str(error.value).startswith(f"{path}: the GeoTIFF cannot be written to {disk} (")
    assert "free space" in str(error.value)
    assert path.read_bytes() == before
    assert sorted(p.name for p in disk.iterdir()) == ["map.tif", "map.tif.aux.xml"]
