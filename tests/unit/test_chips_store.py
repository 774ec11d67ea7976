"""The chip store: opened whole or refused, and an edited pixel does not pass."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

import geopandas
import numpy as np
import pytest
import zarr
from numcodecs.checksum32 import CRC32C

from terrafine.chips import ChipStore, build_chips, open_chips, shards
from terrafine.chips.layout import shard_name
from terrafine.chips.shards import ShardReader
from terrafine.errors import ChipStoreError, StorageError
from terrafine.raster import open_class_raster, open_mosaics
from terrafine.spec import load_spec
from terrafine.storage import Storage
from tests.buckets import Weather, s3_bucket_in
from tests.scenes import Project, make_project


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(_build(make_project(tmp_path_factory.mktemp("project"))))


def _build(project: Project) -> ChipStore:
    spec = load_spec(project.spec)
    return build_chips(
        project.root / "chips",
        spec=spec,
        mosaics=open_mosaics(spec.imagery, project.root),
        labels=open_class_raster(spec.labels, spec.resolve_legend(), project.root),
    )


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


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ChipStoreError, match="no chip store here"):
        open_chips(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def folder(store: ChipStore) -> Path:
    path = store.storage.path
    assert path is not None
    return path


def test_arrays_are_what_other_tools_expect(store: ChipStore) -> None:
    root = zarr.open_group(folder(store), mode="r")
    assert root.metadata.zarr_format == 3
    image, label = root["image"], root["label"]
    assert image.shape[1:] == (4, 32, 32)
    assert image.shards == (8, 4, 32, 32), "eight chips, one object"
    assert (image.dtype, label.dtype) == (np.uint16, np.uint8)
    assert root.attrs["schema"] == "terrafine-chips-2"
    table = geopandas.read_parquet(folder(store) / "chips.parquet")
    assert len(table) == len(store)
    for index, position in enumerate(table["position"]):
        assert (image[position] == store.image(index)).all()
        assert (label[position] == store.label(index)).all()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ChipStore:
    """Chips of several chunks a side."""
    project = make_project(tmp_path_factory.mktemp("large"), size=1200)
    project.change_spec(chips={"size": 512})
    return _build(project)


def test_a_crop_takes_what_zarr_takes(large: ChipStore) -> None:
    arrays = zarr.open_group(folder(large), mode="r")
    rng = np.random.default_rng(0)
    for _ in range(40):
        size = int(rng.integers(1, 513))
        row, col = (int(n) for n in rng.integers(0, 513 - size, 2))
        index = int(rng.integers(len(large)))
        image_CHW, label_HW = large.crop(index, row, col, size)
        part = slice(row, row + size), slice(col, col + size)
        slot = large.positions[index]
        assert (image_CHW == arrays["image"][slot, :, *part]).all()
        assert (label_HW == arrays["label"][slot, *part]).all()


def test_a_crop_reads_only_the_chunks_it_touches(large: ChipStore) -> None:
    """Zeros over every chunk but one: whatever touches another is refused."""
    shard = folder(large) / "label" / "c.0.0.0"
    whole = shard.read_bytes()
    data = bytearray(whole)
    start, length = (int(n) for n in ShardReader.index(large.shards, "label/c.0.0.0")[0, 0, 0])
    data[:start] = bytes(start)
    data[start + length : large.shards.shards["label/c.0.0.0"] - 8 * 4 * 16 - 4] = bytes(
        large.shards.shards["label/c.0.0.0"] - 8 * 4 * 16 - 4 - start - length
    )
    shard.write_bytes(data)
    try:
        large.crop(0, 0, 0, 256)
        with pytest.raises(ChipStoreError, match=f"label of chip {large.name(0)} cannot be read"):
            large.crop(0, 0, 0, 257)
    finally:
        shard.write_bytes(whole)


@dataclass(frozen=True)
class Indexes(Storage):
    """The index of every shard; counts how often each is fetched."""

    fetched: Counter[str] = field(default_factory=Counter)

    def ranges(self, name: str, parts: Sequence[tuple[int, int]]) -> list[memoryview]:
        self.fetched[name] += 1
        ((_, length),) = parts
        return [memoryview(bytes(CRC32C(location="end").encode(bytes(length - 4))))]


def index_reader(groups: int) -> tuple[ShardReader, Indexes]:
    """Of a store of so many groups of chips of 1024."""
    names = [shard_name(name, group) for group in range(groups) for name in ("image", "label")]
    indexes = Indexes("nowhere")
    return ShardReader(indexes, bands=4, size=1024, shards=dict.fromkeys(names, 10**7)), indexes


def test_of_the_papers_store_every_shard_index_is_fetched_once() -> None:
    reader, indexes = index_reader(102_000 // 8)
    for _ in range(2):
        for name in reader.shards:
            assert reader.index(name).shape == (8, 4, 4, 2)
    assert set(indexes.fetched.values()) == {1}


def test_what_is_remembered_of_a_larger_store_stays_and_the_rest_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "_REMEMBERED", 3 * 2048)
    reader, indexes = index_reader(4)
    for name in reader.shards:
        reader.index(name)
    with ThreadPoolExecutor(8) as pool:
        for index in pool.map(reader.index, [*reader.shards] * 50):
            assert index.shape == (8, 4, 4, 2)
    assert sorted(indexes.fetched.values()) == [1] * 3 + [51] * 5


def _sum(store: ChipStore) -> int:
    return int(store.crop(1, 0, 0, 32)[0].astype(np.int64).sum())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_the_same(store: ChipStore, start: str) -> None:
    expected = _sum(store)
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.map(_sum, [store]) == [expected]


def set_pixel(path: Path, name: str, slot: int) -> None:
    array = zarr.open_group(path, mode="r+")[name]
    where = (slot, 0, 4, 5) if name == "image" else (slot, 4, 5)
    array[where] = array[where] + 1


@pytest.mark.parametrize("name", ["image", "label"])
def test_an_edited_pixel_is_found_and_its_chip_named(store: ChipStore, name: str) -> None:
    set_pixel(folder(store), name, int(store.positions[2]))
    sizes = json.loads((folder(store) / "shards.json").read_bytes())
    change = {n: (folder(store) / n).stat().st_size for n in sizes}
    edited = replace(store, shards=ShardReader(store.storage, store.bands, store.size, change))
    with pytest.raises(ChipStoreError) as error:
        edited.verify()
    message = str(error.value)
    assert message.startswith(f"{store.storage}: chip {store.table['id'][2]} was edited")
    assert "terrafine label SPEC" in message


def test_some_chips_can_be_verified_for_all(store: ChipStore) -> None:
    read: list[int] = []

    class Noting(ShardReader):
        def read(self, name: str, slot: int, rows: slice, cols: slice) -> np.ndarray:
            read.append(slot)
            return super().read(name, slot, rows, cols)

    noting = Noting(store.storage, store.bands, store.size, store.shards.shards)
    replace(store, shards=noting).verify(most=10)
    chips = np.searchsorted(store.positions, sorted(set(read)))
    assert 5 <= len(chips) <= 10
    assert len(set(np.diff(chips))) == 1, "spread evenly"


def flip_shard(path: Path) -> None:
    shard = path / "image" / "c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)


def flip_index(path: Path) -> None:
    shard = path / "label" / "c.0.0.0"
    data = bytearray(shard.read_bytes())
    data[-12] ^= 1
    shard.write_bytes(data)


def cut_while_open(path: Path) -> None:
    shard = path / "label" / "c.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-20])


def lose_while_open(path: Path) -> None:
    (path / "image" / "c.0.0.0.0").unlink()


@pytest.mark.parametrize("damage", [flip_shard, flip_index])
def test_a_damaged_chip_is_named_when_it_is_read(
    store: ChipStore, damage: Callable[[Path], None]
) -> None:
    damage(folder(store))
    with pytest.raises(ChipStoreError, match=rf"chip {store.table['id'][0]} cannot be read"):
        store.crop(0, 0, 0, 32)


@pytest.mark.parametrize("damage", [cut_while_open, lose_while_open])
def test_a_shard_that_cannot_be_fetched_is_named(
    store: ChipStore, damage: Callable[[Path], None]
) -> None:
    damage(folder(store))
    with pytest.raises(StorageError, match=r"/(image|label)/c\.0\.0\S*: cannot read it"):
        store.crop(0, 0, 0, 32)
    with pytest.raises(ChipStoreError, match=r"shard (image|label)/c\.0\."):
        open_chips(store.storage)


def test_a_store_that_cannot_be_reached_is_not_called_damaged(built: Path) -> None:
    weather = Weather()
    with s3_bucket_in(weather) as bucket:
        there, here = Storage.at(f"{bucket}/chips"), Storage.at(built)
        for name in here.names():
            there.write(name, here.read(name) or b"")
        store = open_chips(there)
        weather.instead = {"/c.": repeat(403), "image/zarr.json": repeat(403)}
        with pytest.raises(StorageError, match=r"image/c\.0\S*: cannot read it .*credentials"):
            store.crop(0, 0, 0, 32)
        with pytest.raises(StorageError, match=r"image/zarr\.json: cannot read it .*credentials"):
            open_chips(there)
        weather.instead.clear()
        open_chips(there).verify(most=2)


def test_not_one_shard_is_opened_to_open_a_store(store: ChipStore) -> None:
    """50 000 chips cannot be looked at one by one."""
    for shard in folder(store).glob("*/c.*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert len(open_chips(folder(store))) == len(store)


def lose_shard(path: Path) -> None:
    (path / "image" / "c.1.0.0.0").unlink()


def cut_shard(path: Path) -> None:
    shard = path / "label" / "c.1.0.0"
    shard.write_bytes(shard.read_bytes()[:-20])


def store_floats(path: Path) -> None:
    metadata = path / "image" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"uint16"', '"float32"'))


def shrink(path: Path) -> None:
    metadata = path / "image" / "zarr.json"
    data = json.loads(metadata.read_text())
    data["shape"][0] = 3
    metadata.write_text(json.dumps(data))


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
        (lambda p: shutil.rmtree(p), "no chip store here, or its building"),
        (lambda p: (p / "chips.parquet").unlink(), "no chip store here"),
        (lambda p: (p / "zarr.json").unlink(), "no chip store here"),
        (lambda p: shutil.rmtree(p / "label"), "the chip store is damaged"),
        (lambda p: (p / "zarr.json").write_text("{"), "the chip store is damaged"),
        (lambda p: (p / "chips.parquet").write_bytes(b"PAR1"), "chips.parquet was edited or dam"),
        (lose_shard, "incomplete: shard image/c.1.0.0.0 is not there (1 of 12 are missing)"),
        (cut_shard, "shard label/c.1.0.0 has "),
        (store_floats, "dtype of array image is float32, uint16 is needed"),
        (shrink, "shape of array image is (3, 4, 32, 32), (56, 4, 32, 32) is needed"),
        (lambda p: (p / "shards.json").write_text("{}"), "shards.json was edited"),
        (edit_table, "chips.parquet was edited"),
        (
            lambda p: edit_attributes(p, lambda a: a.update(schema="terrafine-chips-9")),
            "not a chip store of this version: schema",
        ),
        (lambda p: edit_attributes(p, lambda a: a.pop("legend")), "not a chip store of this ver"),
        (lambda p: edit_attributes(p, lambda a: a.update(chips=3)), "the store holds 3;"),
    ],
)
def test_what_is_no_whole_store_is_refused(
    store: ChipStore, harm: Callable[[Path], object], said: str
) -> None:
    harm(folder(store))
    with pytest.raises(ChipStoreError) as error:
        open_chips(folder(store))
    assert str(error.value).startswith(f"{store.storage}: ")
    assert said in str(error.value)
    assert "terrafine label SPEC" in str(error.value)
