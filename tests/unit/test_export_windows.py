"""The windows that a graph is compared, calibrated and asked on come from all of the imagery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from terrafine.errors import StageError
from terrafine.raster import Mosaic, open_mosaics
from terrafine.spec import ExportSpec, ImagerySpec, MapSpec, SceneSpec
from terrafine.stages.export import real_windows
from tests.imagery import small_spec
from tests.scenes import CRS, write_raster

MAP = small_spec()
# windows of a scene
ROWS, COLS = 8, 4
ZONES = (CRS, "EPSG:32651", "EPSG:32652")


def numbered(first: int = 1) -> np.ndarray:
    """(1, H, W) uint16, each window of the map with its own number, row by row."""
    numbers = np.arange(first, first + ROWS * COLS, dtype=np.uint16).reshape(1, ROWS, COLS)
    return numbers.repeat(MAP.core, 1).repeat(MAP.core, 2)


def drawn(root: Path, count: int, *scenes_CHW: np.ndarray) -> list[int]:
    """The numbers of ``count`` windows of scenes that lie each in its own zone."""
    corner = Affine(3.0, 0.0, 96.0 * 5000, 0.0, -3.0, 96.0 * 45000)
    for zone, image_CHW in zip(ZONES, scenes_CHW, strict=False):
        write_raster(root / f"{zone[5:]}.tif", image_CHW, nodata=0, crs=zone, transform=corner)
    files = [f"{zone[5:]}.tif" for zone, _ in zip(ZONES, scenes_CHW, strict=False)]
    scenes = tuple(SceneSpec(name=file[:5], files=(file,)) for file in files)
    imagery = ImagerySpec(scenes=scenes, bands=("a",))
    spec = MapSpec(
        name="windows", imagery=imagery, map=MAP, champion="release",
        export=ExportSpec(parity_windows=count),
    )  # fmt: skip
    mosaics: list[Mosaic] = list(open_mosaics(imagery, root).values())
    windows_NCHW = real_windows(spec, mosaics)
    assert windows_NCHW.shape[1:] == (1, MAP.window, MAP.window)
    middle = MAP.window // 2
    return [int(number) for number in windows_NCHW[:, 0, middle, middle]]


def rows(numbers: list[int]) -> list[int]:
    return [(number - 1) // COLS for number in numbers]


def test_windows_come_from_all_of_the_imagery_from_north_to_south(tmp_path: Path) -> None:
    found = drawn(tmp_path, 4, numbered())
    assert [row // 2 for row in rows(found)] == [0, 1, 2, 3]
    assert len({number % COLS for number in found}) > 1, "not all in one column"


def test_what_calibrates_int8_and_what_judges_it_come_from_north_and_south(tmp_path: Path) -> None:
    found = drawn(tmp_path, 4, numbered())
    for half in (found[::2], found[1::2]):
        north, south = rows(half)
        assert north < ROWS // 2 <= south


def test_they_are_the_same_whenever_they_are_drawn(tmp_path: Path) -> None:
    assert drawn(tmp_path, 5, numbered()) == drawn(tmp_path, 5, numbered())


def test_where_the_south_has_no_pixels_the_north_gives_as_many(tmp_path: Path) -> None:
    image_CHW = numbered()
    image_CHW[:, 2 * MAP.core :] = 0
    found = drawn(tmp_path, 6, image_CHW)
    # the middle of those in the third row, whose halo sees the second
    seen = [number for number in found if number]
    assert len(found) == 6
    assert len(set(seen)) == len(seen) >= 2
    assert set(rows(seen)) <= {0, 1}


def test_every_zone_gives_its_share_and_calibrates_and_judges(tmp_path: Path) -> None:
    found = drawn(tmp_path, 8, *(numbered(1 + 100 * zone) for zone in range(2)))
    zones = [number // 100 for number in found]
    assert zones == [0] * 4 + [1] * 4
    assert drawn(tmp_path, 4, *(numbered(1 + 100 * zone) for zone in range(3)))[-1] // 100 == 2


def test_a_zone_with_few_windows_leaves_the_rest_to_the_others(tmp_path: Path) -> None:
    small_CHW = numbered(201)[:, : MAP.core, : MAP.core]
    found = drawn(tmp_path, 6, numbered(), small_CHW)
    assert [number // 100 for number in found] == [0] * 5 + [2]


def test_imagery_without_a_pixel_is_told(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no window of the imagery holds a valid pixel"):
        drawn(tmp_path, 4, 0 * numbered())
