"""A folder on disk and one in a bucket behave alike."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from terrafine.errors import StorageError
from terrafine.storage import Storage
from tests.buckets import s3_bucket
from tests.disks import small_disk


@pytest.fixture(params=["disk", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage.at(tmp_path / "run")
        return
    with s3_bucket() as url:
        yield Storage.at(f"{url}/run/")


def test_what_is_written_is_read_listed_replaced_and_deleted(storage: Storage) -> None:
    assert storage.names() == []
    assert storage.read("a/1") is None
    storage.write("a/1", b"one")
    storage.write("a/2", b"two")
    storage.write("b", b"")
    storage.write("a/1", b"another")
    assert storage.names() == ["a/1", "a/2", "b"]
    assert storage.names("a") == ["a/1", "a/2"]
    assert storage.read("a/1") == b"another"
    assert storage.read("b") == b""
    assert storage.size("a/1") == 7
    assert (storage / "a").read("2") == b"two"
    storage.delete(["a/1", "never there"])
    assert storage.names() == ["a/2", "b"]
    storage.clear("a")
    assert storage.names() == ["b"]


def test_parts_of_an_object_are_read_alone(storage: Storage) -> None:
    storage.write("shard", bytes(range(100)))
    first, second = storage.ranges("shard", [(90, 10), (5, 2)])
    assert (bytes(first), bytes(second)) == (bytes(range(90, 100)), bytes([5, 6]))
    with pytest.raises(StorageError, match="none: cannot read it"):
        storage.ranges("none", [(0, 1)])


def test_copies_for_other_processes_are_the_same_folder(storage: Storage) -> None:
    storage.write("a", b"one")
    copy = pickle.loads(pickle.dumps(Storage(storage.location)))  # noqa: S301
    assert copy == storage
    assert copy.read("a") == b"one"


def test_full_disk_leaves_what_was_there_and_no_half_object(tmp_path: Path) -> None:
    for disk in small_disk(tmp_path / "small", kilobytes=400):
        storage = Storage.at(disk)
        storage.write("state", b"old")
        with pytest.raises(StorageError, match=r"small/state: cannot write it .*No space.*space"):
            storage.write("state", bytes(1_000_000))
        assert storage.read("state") == b"old"
        assert [path.name for path in disk.iterdir()] == ["state"]


def test_place_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/run.* cannot open it"):
        Storage.at(tmp_path / "file" / "run").write("a", b"")
    with pytest.raises(StorageError, match="nowhere://place: cannot open it"):
        Storage.at("nowhere://place").names()
