"""The chip store: opened whole or refused, and an edited pixel does not pass."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pytest
import zarr

from terrafine.chips import ChipStore, build_chips, open_chips
from terrafine.errors import ChipStoreError
from terrafine.raster import open_class_raster, open_mosaics
from terrafine.spec import load_spec
from tests.scenes import make_project


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("project"))
    spec = load_spec(project.spec)
    path = project.root / "chips"
    build_chips(
        path,
        spec=spec,
        mosaics=open_mosaics(spec.imagery, project.root),
        labels=open_class_raster(spec.labels, spec.resolve_legend(), project.root),
    )
    return path


@pytest.fixture
def store(built: Path, tmp_path: Path) -> ChipStore:
    """A copy to do harm to."""
    return open_chips(Path(shutil.copytree(built, tmp_path / "chips")))


def test_what_was_written_is_verified(store: ChipStore) -> None:
    store.verify()


def test_a_crop_is_a_part_of_its_chip(store: ChipStore) -> None:
    image_CHW, label_HW = store.crop(3, 5, 9, 16)
    assert (image_CHW.dtype, label_HW.dtype) == (np.uint16, np.uint8)
    assert (image_CHW == store.image(3)[:, 5:21, 9:25]).all()
    assert (label_HW == store.label(3)[5:21, 9:25]).all()
    for row, col, size in [(-1, 0, 16), (0, 17, 16), (0, 0, 33)]:
        with pytest.raises(ValueError, match="leaves the chip"):
            store.crop(0, row, col, size)


def test_every_chip_is_in_one_part_of_the_split(store: ChipStore) -> None:
    train, validation = store.indexes("train"), store.indexes("validation")
    assert sorted([*train, *validation]) == list(range(len(store)))
    assert len(validation) >= 0.25 * len(store)


def test_arrays_are_what_other_tools_expect(store: ChipStore) -> None:
    root = zarr.open_group(store.path, mode="r")
    assert root.metadata.zarr_format == 3
    assert root["image"].shape == (len(store), 4, 32, 32)
    assert root["image"].dtype == np.uint16
    assert root["image"].shards == (1, 4, 32, 32), "one chip, one file"
    assert root["label"].dtype == np.uint8
    assert root.attrs["schema"] == "terrafine-chips-1"
    table = geopandas.read_parquet(store.path / "chips.parquet")
    assert len(table) == len(store)


def _sum(store: ChipStore) -> int:
    return int(store.crop(1, 0, 0, 32)[0].astype(np.int64).sum())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_the_same(store: ChipStore, start: str) -> None:
    expected = _sum(store)
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.map(_sum, [store]) == [expected]


def set_pixel(path: Path, name: str) -> None:
    array = zarr.open_group(path, mode="r+")[name]
    where = (2, 0, 4, 5) if name == "image" else (2, 4, 5)
    array[where] = array[where] + 1


@pytest.mark.parametrize("name", ["image", "label"])
def test_an_edited_pixel_is_found_and_its_chip_named(store: ChipStore, name: str) -> None:
    set_pixel(store.path, name)
    edited = open_chips(store.path)
    with pytest.raises(ChipStoreError) as error:
        edited.verify()
    message = str(error.value)
    assert message.startswith(f"{store.path}: chip {store.table['id'][2]} was edited")
    assert "terrafine label SPEC" in message


def flip_shard(path: Path) -> None:
    shard = path / "image" / "c" / "2" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)


def cut_shard(path: Path) -> None:
    shard = path / "label" / "c" / "2" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [flip_shard, cut_shard])
def test_a_damaged_shard_is_named(store: ChipStore, damage: Callable[[Path], None]) -> None:
    damage(store.path)
    with pytest.raises(ChipStoreError, match=rf"chip {store.table['id'][2]} cannot be read"):
        open_chips(store.path).verify()


def lose_chip(path: Path) -> None:
    (path / "image" / "c" / "3" / "0" / "0" / "0").unlink()


def edit_table(path: Path) -> None:
    table = geopandas.read_parquet(path / "chips.parquet")
    table["split"] = "train"
    table.to_parquet(path / "chips.parquet", index=False)


def edit_attributes(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    data = json.loads((path / "zarr.json").read_text())
    change(data["attributes"])
    (path / "zarr.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: shutil.rmtree(p), "no chip store here; run `terrafine label"),
        (lambda p: (p / "chips.parquet").unlink(), "no chip store here"),
        (lambda p: (p / "zarr.json").unlink(), "no chip store here"),
        (lambda p: shutil.rmtree(p / "label"), "the chip store is damaged"),
        (lambda p: (p / "zarr.json").write_text("{"), "the chip store is damaged"),
        (lambda p: (p / "chips.parquet").write_bytes(b"PAR1"), "the chip store is damaged"),
        (lose_chip, "incomplete: the image of chip epsg32650-r"),
        (edit_table, "chips.parquet was edited"),
        (
            lambda p: edit_attributes(p, lambda a: a.update(schema="terrafine-chips-9")),
            "not a chip store of this version: schema",
        ),
        (lambda p: edit_attributes(p, lambda a: a.pop("legend")), "not a chip store of this ver"),
        (lambda p: edit_attributes(p, lambda a: a.update(chips=3)), "do not hold the 3 chips"),
    ],
)
def test_what_is_no_whole_store_is_refused(
    store: ChipStore, harm: Callable[[Path], object], said: str
) -> None:
    harm(store.path)
    with pytest.raises(ChipStoreError) as error:
        open_chips(store.path)
    assert str(error.value).startswith(f"{store.path}: ")
    assert said in str(error.value)
    assert "terrafine label SPEC" in str(error.value)
