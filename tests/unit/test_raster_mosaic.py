"""Mosaics: every pixel from the first scene that has it, and it can be told which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from terrafine.errors import RasterError
from terrafine.geometry import Window
from terrafine.raster import Mosaic, open_mosaics
from terrafine.spec import ImagerySpec
from tests.scenes import TRANSFORM, write_raster


def scene(
    root: Path, name: str, value: int, *, right: float = 0, holes: Any = None, **changes: Any
) -> None:
    image_CHW = np.full((2, 20, 20), value, np.uint16)
    image_CHW[1] += 1
    if holes is not None:
        image_CHW[holes] = 0
    changes.setdefault("transform", TRANSFORM @ Affine.translation(right, 0))
    write_raster(root / f"{name}.tif", image_CHW, **{"nodata": 0, **changes})


def mosaics(root: Path, *names: str, **imagery: Any) -> dict[str, Mosaic]:
    scenes = [{"name": name, "files": [f"{name}.tif"]} for name in names]
    spec = ImagerySpec.model_validate({"scenes": scenes, "bands": ("red", "nir"), **imagery})
    return open_mosaics(spec, root)


def test_the_first_scene_lies_on_top_and_the_next_shows_through_its_holes(tmp_path: Path) -> None:
    scene(tmp_path, "a", 100, holes=(slice(None), slice(0, 5), slice(None)))
    scene(tmp_path, "b", 200, right=10)
    mosaic = mosaics(tmp_path, "a", "b")["epsg32650"]
    assert mosaic.window.shape == (20, 30)
    image_CHW, source_HW = mosaic.read(mosaic.window)
    expected = np.zeros((20, 30), np.uint16)
    expected[:, 10:] = 2
    expected[5:, :20] = 1
    assert (source_HW == expected).all()
    assert (image_CHW[0] == np.array([0, 100, 200])[expected]).all()
    assert (image_CHW[1] == np.array([0, 101, 201])[expected]).all()


def test_a_pixel_without_one_of_its_bands_is_missing(tmp_path: Path) -> None:
    scene(tmp_path, "a", 100, holes=(1, 3, 4))
    mosaic = mosaics(tmp_path, "a")["epsg32650"]
    image_CHW, source_HW = mosaic.read(mosaic.window)
    assert np.argwhere(source_HW == 0).tolist() == [[3, 4]]
    assert (image_CHW[:, 3, 4] == 0).all(), "no half of a pixel is handed on"


def test_a_pixel_is_the_same_whichever_window_asks(tmp_path: Path) -> None:
    scene(tmp_path, "a", 100, holes=(slice(None), slice(0, 5), slice(None)))
    scene(tmp_path, "b", 200, right=10)
    mosaic = mosaics(tmp_path, "a", "b")["epsg32650"]
    around = mosaic.window.buffered(7)
    whole_CHW, whole_source = mosaic.read(around)
    for tile in mosaic.window.tiles(8):
        part = tile.intersection(around)
        assert part is not None
        rows, cols = part.slices(within=around)
        image_CHW, source_HW = mosaic.read(part)
        assert (image_CHW == whole_CHW[:, rows, cols]).all()
        assert (source_HW == whole_source[rows, cols]).all()


def test_sources_are_numbered_over_the_whole_spec(tmp_path: Path) -> None:
    scene(tmp_path, "a", 100)
    scene(tmp_path, "b", 200, crs="EPSG:32651")
    scene(tmp_path, "c", 300, right=40)
    found = mosaics(tmp_path, "a", "b", "c")
    assert list(found) == ["epsg32650", "epsg32651"]
    west, east = found["epsg32650"], found["epsg32651"]
    assert set(np.unique(west.read(west.window)[1])) == {0, 1, 3}
    assert set(np.unique(east.read(east.window)[1])) == {2}


def test_it_is_known_where_no_scene_lies(tmp_path: Path) -> None:
    scene(tmp_path, "a", 100)
    scene(tmp_path, "b", 200, right=40)
    mosaic = mosaics(tmp_path, "a", "b")["epsg32650"]
    first = mosaic.window
    assert mosaic.touches(Window(first.row, first.col, 1, 1))
    assert mosaic.touches(Window(first.row, first.col + 59, 1, 1))
    assert not mosaic.touches(Window(first.row, first.col + 20, 20, 20))


def test_scenes_between_each_others_pixels_are_refused(tmp_path: Path) -> None:
    scene(tmp_path, "a", 100)
    scene(tmp_path, "b", 200, right=10.5)
    with pytest.raises(RasterError, match=r"scene b \(.*b\.tif\): .*0\.50 pixels off.*warp"):
        mosaics(tmp_path, "a", "b")


def test_scenes_must_mark_missing_pixels_alike(tmp_path: Path) -> None:
    scene(tmp_path, "a", 100)
    scene(tmp_path, "b", 200, nodata=65535)
    with pytest.raises(RasterError, match=r"scene b .*65535, in scene a they are 0.*imagery.nodat"):
        mosaics(tmp_path, "a", "b")
    assert mosaics(tmp_path, "a", "b", nodata=0)["epsg32650"].fill == 0


def test_a_crs_without_a_code_cannot_name_a_zone(tmp_path: Path) -> None:
    scene(tmp_path, "a", 100, crs="+proj=laea +lat_0=31.4 +lon_0=99.2 +ellps=intl")
    with pytest.raises(RasterError, match=r"imagery\.crs"):
        mosaics(tmp_path, "a")
