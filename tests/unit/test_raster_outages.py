"""Imagery in a bucket whose server fails: the same pixels or a clear error, never a silent gap."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import rasterio

from terrafine.errors import RasterError, UnreachableError
from terrafine.geometry import Window
from terrafine.raster import Mosaic, files, open_mosaics
from terrafine.spec import ImagerySpec
from tests.buckets import Weather, s3_bucket_in
from tests.catalogues import SIDE, Listed
from tests.scenes import write_raster

UPPER = Listed("a", 100)
LOWER = Listed("b", 200, right=10)
# pixels a side of a scene that does not come with the first 16 KB
LARGE = 128


@pytest.fixture(scope="module")
def sky() -> Iterator[tuple[Weather, str]]:
    """A server's weather, and the URL of a bucket on it."""
    weather = Weather()
    with s3_bucket_in(weather) as bucket:
        yield weather, bucket


@pytest.fixture
def weather(sky: tuple[Weather, str]) -> Iterator[Weather]:
    yield sky[0]
    sky[0].instead.clear()


@pytest.fixture
def bucket(sky: tuple[Weather, str], tmp_path: Path) -> str:
    """A folder that no other test has: GDAL keeps files open."""
    return f"{sky[1]}/{tmp_path.name}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_RETRY": "2", "RETRY_DELAY": "0.01", "TIMEOUT": "20"}.items():
        monkeypatch.setitem(files._REMOTE, f"GDAL_HTTP_{name}", value)


def upload(root: Path, bucket: str) -> None:
    name, _, folder = bucket.removeprefix("s3://").partition("/")
    for path in root.rglob("*.tif"):
        boto3.client("s3").upload_file(str(path), name, f"{folder}/{path.relative_to(root)}")


def listed(root: Path, base: str, *scenes: Listed, **imagery: Any) -> Mosaic:
    """The mosaic of scenes below ``base``, the first on top."""
    items = [scene.item(f"{base}/") for scene in scenes]
    document = {"type": "FeatureCollection", "features": items}
    (root / "items.json").write_text(json.dumps(document))
    return mosaic_of(root, "items.json", **imagery)


def mosaic_of(root: Path, source: str, **imagery: Any) -> Mosaic:
    values = {"catalogue": {"source": source}, "bands": ("red", "nir"), "nodata": 0, **imagery}
    (only,) = open_mosaics(ImagerySpec.model_validate(values), root).values()
    return only


def two_scenes(root: Path, bucket: str) -> Mosaic:
    for scene in (UPPER, LOWER):
        scene.write(root)
    upload(root, bucket)
    return listed(root, bucket, UPPER, LOWER)


def large_scene(root: Path, bucket: str, **profile: Any) -> tuple[Mosaic, np.ndarray]:
    """One scene in blocks of 64 pixels a side, and what it holds."""
    image_CHW = np.random.default_rng(0).integers(1, 9999, (2, LARGE, LARGE)).astype(np.uint16)
    scene = Listed("large", 1, said={"proj:shape": [LARGE, LARGE]})
    (root / "scenes").mkdir()
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "nodata": 0, **profile}
    write_raster(root / scene.file, image_CHW, **options)
    upload(root, bucket)
    return listed(root, bucket, scene), image_CHW


def require_both(found: Mosaic) -> None:
    """Every pixel of the two scenes is there."""
    image_CHW, source_HW = found.read(found.window)
    assert (source_HW[:, :SIDE] == 1).all()
    assert (source_HW[:, SIDE:] == 2).all()
    assert (image_CHW[0] == np.where(source_HW == 1, 100, 200)).all()
    assert not found.unreadable


def test_a_server_that_fails_for_a_while_is_asked_again(
    tmp_path: Path, weather: Weather, bucket: str
) -> None:
    found = two_scenes(tmp_path, bucket)
    before = weather.happened["503"]
    weather.instead["a_2020"] = iter([503, 503])
    require_both(found)
    assert weather.happened["503"] == before + 2


@pytest.mark.parametrize("status", [503, 500, 429, 403, 401, 400])
def test_a_server_that_goes_on_failing_ends_the_map_and_nothing_is_remembered(
    tmp_path: Path, weather: Weather, bucket: str, status: int
) -> None:
    found = two_scenes(tmp_path, bucket)
    weather.instead["a_2020"] = repeat(status)
    said = (
        rf"^scene a: {bucket}/scenes/a_20200601\.tif: cannot be read now \(.*run the same command"
    )
    with pytest.raises(UnreachableError, match=said):
        found.read(found.window)
    assert not found.unreadable, "it is not passed over"
    weather.instead.clear()
    require_both(found)


def test_what_a_server_says_is_not_there_is_passed_over(
    tmp_path: Path, weather: Weather, bucket: str
) -> None:
    LOWER.write(tmp_path)
    upload(tmp_path, bucket)
    found = listed(tmp_path, bucket, UPPER, LOWER)
    _, source_HW = found.read(found.window)
    assert set(np.unique(source_HW)) == {0, 2}
    assert list(found.unreadable) == ["a"]
    strict = listed(tmp_path, bucket, UPPER, LOWER, on_unreadable="fail")
    with pytest.raises(RasterError, match=r"a_20200601\.tif: cannot be read, the file is damaged"):
        strict.read(strict.window)


def test_a_server_that_fails_in_the_middle_of_a_scene_ends_the_map(
    tmp_path: Path, weather: Weather, bucket: str
) -> None:
    """GDAL says of its blocks what it says of a file that was cut off."""
    found, image_CHW = large_scene(tmp_path, bucket)
    first = found.window
    corner = Window(first.row, first.col, 8, 8)
    assert (found.read(corner)[0] == image_CHW[:, :8, :8]).all()
    weather.instead["large"] = repeat(403)
    with pytest.raises(UnreachableError, match=r"large.*cannot be read now \(.*(403|AccessDenied)"):
        found.read(first)
    weather.instead.clear()
    assert (found.read(first)[0] == image_CHW).all()
    assert not found.unreadable


def test_a_file_that_was_cut_off_cannot_be_told_from_a_server_that_fails(
    tmp_path: Path, weather: Weather, bucket: str
) -> None:
    found, _ = large_scene(tmp_path, bucket)
    (path,) = (tmp_path / "scenes").iterdir()
    path.write_bytes(path.read_bytes()[:-3000])
    upload(tmp_path, bucket)
    with pytest.raises(UnreachableError, match="again and again the file is damaged: copy it anew"):
        found.read(found.window)


@pytest.mark.parametrize("damage", ["no raster", "spoilt blocks"])
def test_a_file_that_came_whole_and_is_damaged_is_passed_over(
    tmp_path: Path, weather: Weather, bucket: str, damage: str
) -> None:
    found, _ = large_scene(tmp_path, bucket, compress="deflate")
    (path,) = (tmp_path / "scenes").iterdir()
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as file:
        start = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    if damage == "no raster":
        start = 0
    data[start : start + 2000] = bytes(2000)
    path.write_bytes(data)
    upload(tmp_path, bucket)
    assert not found.read(found.window)[1].any()
    assert list(found.unreadable) == ["large"]


def test_a_mask_that_does_not_come_is_not_taken_for_none(
    tmp_path: Path, weather: Weather, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL looks for a file's mask while it holds Python's lock: this server cannot answer."""
    found, _ = large_scene(tmp_path, bucket)
    (path,) = (tmp_path / "scenes").iterdir()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros((LARGE, LARGE), np.uint8))
    upload(tmp_path, bucket)
    monkeypatch.setitem(files._REMOTE, "GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setitem(files._REMOTE, "GDAL_HTTP_MAX_RETRY", "0")
    with pytest.raises(UnreachableError, match="cannot be read now"):
        found.read(found.window)


def test_a_folder_whose_headers_do_not_come_is_no_catalogue(
    tmp_path: Path, weather: Weather, bucket: str
) -> None:
    two_scenes(tmp_path, bucket)
    weather.instead["a_2020"] = repeat(503)
    with pytest.raises(UnreachableError, match=r"a_20200601\.tif: cannot be read now"):
        mosaic_of(tmp_path, f"{bucket}/scenes")
    weather.instead.clear()
    require_both(mosaic_of(tmp_path, f"{bucket}/scenes"))


def test_no_connection_and_no_answer_end_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(files._REMOTE, "GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setitem(files._REMOTE, "GDAL_HTTP_MAX_RETRY", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for server, said in ((f"127.0.0.1:{port}", "timed out"), ("127.0.0.1:1", "connect")):
            found = listed(tmp_path, f"http://{server}", UPPER, LOWER)
            with pytest.raises(UnreachableError, match=rf"a_20200601\.tif: .*{said}"):
                found.read(found.window)
