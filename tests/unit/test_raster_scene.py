"""Scenes: raw numbers in, missing pixels marked, and every damaged file refused by name."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terrafine.errors import RasterError
from terrafine.geometry import Window
from terrafine.raster import Scene, open_scene
from terrafine.raster.files import MAX_OPEN_FILES
from terrafine.spec import ImagerySpec
from tests.scenes import CRS, TRANSFORM, write_raster

BANDS = ("red", "green", "blue", "nir")


def numbers(bands: int = 4, height: int = 40, width: int = 50) -> np.ndarray:
    """Every pixel of every band another number, none of them 0."""
    count = bands * height * width
    return np.arange(1, count + 1, dtype=np.uint16).reshape(bands, height, width)


def opened(
    root: Path, *files: str, bands: tuple[str, ...] = BANDS, indexes: Any = None, **imagery: Any
) -> Scene:
    scene = {"name": "s", "files": files, "band_indexes": indexes}
    spec = ImagerySpec.model_validate({"scenes": [scene], "bands": bands, **imagery})
    return open_scene(spec.scenes[0], spec, root)


def refusal(root: Path, *files: str, **options: Any) -> str:
    with pytest.raises(RasterError) as error:
        opened(root, *files, **options)
    return str(error.value)


def test_a_scene_is_read_as_the_sensor_delivered_it(tmp_path: Path) -> None:
    image_CHW = numbers()
    write_raster(tmp_path / "a.tif", image_CHW, nodata=0)
    scene = opened(tmp_path, "a.tif")
    assert (scene.fill, scene.bands, scene.window.shape) == (0, 4, (40, 50))
    read_CHW = scene.read(scene.window)
    assert read_CHW.dtype == np.uint16
    assert (read_CHW == image_CHW).all()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.integers(-60, 60),
    col=st.integers(-60, 60),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)
def test_any_window_is_the_scene_with_fill_around_it(
    tmp_path: Path, row: int, col: int, height: int, width: int
) -> None:
    image_CHW = numbers()
    if not (tmp_path / "a.tif").exists():
        write_raster(tmp_path / "a.tif", image_CHW, nodata=0)
    scene = opened(tmp_path, "a.tif")
    around = np.zeros((4, 400, 400), np.uint16)
    around[:, 150:190, 150:200] = image_CHW
    window = Window(scene.window.row + row, scene.window.col + col, height, width)
    expected = around[:, 150 + row : 150 + row + height, 150 + col : 150 + col + width]
    assert (scene.read(window) == expected).all()


def test_one_file_per_band_is_the_same_scene(tmp_path: Path) -> None:
    image_CHW = numbers()
    for band in range(4):
        write_raster(tmp_path / f"b{band}.tif", image_CHW[band], nodata=0)
    scene = opened(tmp_path, "b2.tif", "b1.tif", "b0.tif", "b3.tif")
    assert (scene.read(scene.window) == image_CHW[[2, 1, 0, 3]]).all()


def test_bands_are_chosen_by_their_index(tmp_path: Path) -> None:
    image_CHW = numbers(bands=5)
    write_raster(tmp_path / "a.tif", image_CHW, nodata=0)
    first = opened(tmp_path, "a.tif")
    assert (first.read(first.window) == image_CHW[:4]).all()
    chosen = opened(tmp_path, "a.tif", indexes=(5, 1), bands=("nir", "red"))
    assert (chosen.read(chosen.window) == image_CHW[[4, 0]]).all()


@pytest.mark.parametrize(
    ("dtype", "in_file", "in_spec", "fill"),
    [
        ("uint16", None, None, 65535),
        ("uint16", 0, None, 0),
        ("uint16", 65535, None, 65535),
        ("uint16", 0, 7, 7),
        ("uint16", 65535, 0, 0),
        ("float32", -99999, float("nan"), 65535),
        ("float32", -99999, None, 65535),
        ("float32", float("nan"), None, 65535),
        ("float32", None, float("nan"), 65535),
        ("int16", -32768, None, 65535),
        ("float64", 0, None, 0),
    ],
)
def test_missing_pixels_become_the_fill_value(
    tmp_path: Path, dtype: str, in_file: float | None, in_spec: float | None, fill: int
) -> None:
    image_CHW = (numbers(height=10, width=10) % 200 + 10).astype(dtype)
    if in_spec is not None:
        image_CHW[:, 2, 3] = in_spec
    if in_file is not None:
        image_CHW[:, 4, 5] = in_file
    write_raster(tmp_path / "a.tif", image_CHW, nodata=in_file)
    scene = opened(tmp_path, "a.tif", nodata=in_spec)
    assert scene.fill == fill
    read_CHW = scene.read(scene.window)
    expected = np.nan_to_num(image_CHW, nan=fill).astype(np.float64)
    if in_file is not None:
        expected[:, 4, 5] = fill
    assert (read_CHW == expected).all()


def test_pixels_that_the_files_own_mask_hides_are_missing(tmp_path: Path) -> None:
    image_CHW = numbers()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(tmp_path / "a.tif", image_CHW, nodata=None)
        with rasterio.open(tmp_path / "a.tif", "r+") as file:
            mask = np.full((40, 50), 255, np.uint8)
            mask[3, 4] = 0
            file.write_mask(mask)
    read_CHW = opened(tmp_path, "a.tif").read(opened(tmp_path, "a.tif").window)
    assert (read_CHW[:, 3, 4] == 65535).all()
    assert (np.delete(read_CHW.reshape(4, -1), 3 * 50 + 4, axis=1) < 65535).all()


def test_digital_numbers_stored_as_floats_become_whole(tmp_path: Path) -> None:
    image_CHW = (numbers(height=16, width=16) % 256).astype(np.float32)
    write_raster(tmp_path / "a.tif", image_CHW, nodata=-99999)
    read_CHW = opened(tmp_path, "a.tif").read(opened(tmp_path, "a.tif").window)
    assert read_CHW.dtype == np.uint16
    assert (read_CHW == image_CHW).all()


def test_reflectances_are_scaled_and_rounded(tmp_path: Path) -> None:
    image_CHW = np.linspace(0, 1, 4 * 64, dtype=np.float32).reshape(4, 8, 8)
    write_raster(tmp_path / "a.tif", image_CHW, nodata=-1)
    scene = opened(tmp_path, "a.tif", scale=10000)
    expected = np.rint(image_CHW.astype(np.float64) * 10000)
    assert (scene.read(scene.window) == expected).all()


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (np.nan, "imagery.nodata"),
        (np.inf, "imagery.nodata"),
        (-3.0, "imagery.nodata"),
        (65536.0, "imagery.scale"),
        (0.25, "imagery.scale"),
    ],
)
def test_a_number_that_no_sensor_delivers_is_refused_with_its_place(
    tmp_path: Path, value: float, remedy: str
) -> None:
    image_CHW = np.ones((4, 30, 20), np.float32)
    image_CHW[2, 17, 11] = value
    write_raster(tmp_path / "a.tif", image_CHW, nodata=-99999)
    scene = opened(tmp_path, "a.tif")
    window = Window(scene.window.row + 10, scene.window.col + 5, 15, 15)
    with pytest.raises(RasterError) as error:
        scene.read(window)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'a.tif'}: band 3, row 17, column 11 holds {value:g} ")
    assert remedy in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, "gone.tif")
    assert message.startswith(f"{tmp_path / 'gone.tif'}: no such file")
    assert "data root" in message


def test_what_is_no_raster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("not a TIFF")
    message = refusal(tmp_path, "a.tif")
    assert str(tmp_path / "a.tif") in message
    assert "not recognized" in message
    assert "copy or download it again" in message


@pytest.mark.parametrize("layout", ["strips", "tiles", "pixels", "cog"])
@pytest.mark.parametrize("kept", [0.999, 0.5, 0.2])
def test_a_truncated_tiff_is_refused_when_it_is_opened(
    tmp_path: Path, layout: str, kept: float
) -> None:
    options: dict[str, dict[str, Any]] = {
        "strips": {},
        "tiles": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"},
        "pixels": {"interleave": "pixel", "tiled": True, "blockxsize": 64, "blockysize": 64},
        "cog": {"driver": "COG", "compress": "deflate", "blocksize": 128},
    }
    path = tmp_path / "a.tif"
    random = np.random.default_rng(0).integers(1, 9999, (4, 200, 210), np.uint16)
    write_raster(path, random, nodata=0, **options[layout])
    opened(tmp_path, "a.tif")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    message = refusal(tmp_path, "a.tif")
    assert str(path) in message
    assert "copy or download it again" in message


def test_a_sparse_tiff_is_whole(tmp_path: Path) -> None:
    empty = np.zeros((4, 64, 64), np.uint16)
    write_raster(tmp_path / "a.tif", empty, nodata=0, sparse_ok=True)
    scene = opened(tmp_path, "a.tif")
    assert (scene.read(scene.window) == 0).all()


def test_a_damaged_block_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_raster(path, numbers(), nodata=0, compress="deflate")
    with rasterio.open(path) as file:
        start = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=2))
        length = int(file.get_tag_item("BLOCK_SIZE_0_0", "TIFF", bidx=2))
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    scene = opened(tmp_path, "a.tif")
    with pytest.raises(RasterError, match=r"a\.tif: cannot be read, the file is damaged"):
        scene.read(scene.window)


def test_a_wrong_number_of_bands_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "three.tif", numbers(bands=3), nodata=0)
    write_raster(tmp_path / "one.tif", numbers(bands=1), nodata=0)
    message = refusal(tmp_path, "three.tif")
    assert "three.tif" in message
    assert "wrong number of bands: it has 3" in message
    assert "imagery.bands" in message
    assert "2 files" in refusal(tmp_path, "one.tif", "one.tif")
    assert "it has 3, one band per file" in refusal(
        tmp_path, "one.tif", "one.tif", "one.tif", "three.tif"
    )
    assert "names 2 bands" in refusal(tmp_path, "three.tif", indexes=(1, 2))
    assert "band_indexes goes with one" in refusal(tmp_path, *["one.tif"] * 4, indexes=(1, 1, 1, 1))


def test_a_file_without_a_crs_needs_the_spec_to_say_it(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", numbers(), nodata=0, crs=None)
    message = refusal(tmp_path, "a.tif")
    assert "a.tif" in message
    assert "no CRS; set imagery.crs" in message
    assert opened(tmp_path, "a.tif", crs=CRS).grid.crs == CRS
    assert "'EPSG:moon' is no CRS" in refusal(tmp_path, "a.tif", crs="EPSG:moon")


def test_the_spec_overrides_the_crs_of_the_file(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", numbers(), nodata=0)
    assert opened(tmp_path, "a.tif").grid.crs == "EPSG:32650"
    assert opened(tmp_path, "a.tif", crs="epsg:32651").grid.crs == "EPSG:32651"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_file_without_georeferencing_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", numbers(), nodata=0, transform=Affine.identity())
    assert "no georeferencing" in refusal(tmp_path, "a.tif")


def test_bands_on_different_grids_are_refused(tmp_path: Path) -> None:
    for name, shift in (("a.tif", 0), ("b.tif", 1)):
        transform = TRANSFORM @ Affine.translation(shift, 0)
        write_raster(tmp_path / name, numbers(bands=1), nodata=0, transform=transform)
    message = refusal(tmp_path, "a.tif", "b.tif", bands=("red", "nir"))
    assert "b.tif" in message
    assert "another grid than a.tif" in message
    assert "warp" in message


def test_complex_numbers_are_no_image(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", numbers().astype(np.complex64), nodata=None)
    assert "complex64, not real numbers" in refusal(tmp_path, "a.tif")


def _read_sum(scene: Scene) -> int:
    return int(scene.read(scene.window).astype(np.int64).sum())


def test_workers_and_threads_read_the_same(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", numbers(), nodata=0)
    scene = opened(tmp_path, "a.tif")
    expected = _read_sum(scene)
    assert _read_sum(pickle.loads(pickle.dumps(scene))) == expected  # noqa: S301
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(_read_sum, [scene] * 40)) == {expected}
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(_read_sum, [scene] * 2) == [expected] * 2


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", numbers(), nodata=0)
    scene = opened(tmp_path, "a.tif")
    before = scene.read(scene.window)
    write_raster(tmp_path / "b.tif", numbers() + np.uint16(1), nodata=0)
    (tmp_path / "b.tif").replace(tmp_path / "a.tif")
    assert (scene.read(scene.window) == before + 1).all()


def test_many_scenes_need_few_open_files(tmp_path: Path) -> None:
    for i in range(MAX_OPEN_FILES + 10):
        write_raster(tmp_path / f"{i}.tif", numbers(height=2, width=2), nodata=0)
        scene = opened(tmp_path, f"{i}.tif")
        scene.read(scene.window)
    held = [p for p in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(p.resolve())]
    assert 0 < len(held) <= MAX_OPEN_FILES
