"""Of those who want to change a served model only one does, and a dead one is forgotten."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.triton.lock import Holder, LockedError, locked
from terrafine.errors import ServingError
from terrafine.storage import Storage
from tests.buckets import s3_bucket


@pytest.fixture(params=["disk", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage.at(tmp_path / "models")
        return
    with s3_bucket() as url:
        yield Storage.at(f"{url}/models")


def lock_of(storage: Storage) -> str:
    (found,) = (name for name in storage.names() if name.startswith("landcover.lock."))
    return found


def test_the_second_is_told_who_is_at_work_and_nothing_stays(storage: Storage) -> None:
    here = re.escape(Holder.here("deploy").who)
    with locked(storage, "landcover", "promote") as require:
        require()
        with (
            pytest.raises(
                LockedError, match=rf"{here} is at work on it \(promote since .*try again"
            ),
            locked(storage, "landcover", "deploy"),
        ):
            pytest.fail("two at once")
        with locked(storage, "other", "deploy"):
            require()
    assert storage.names() == []


def test_of_many_that_begin_together_one_is_at_work_at_a_time(storage: Storage) -> None:
    inside, most, refused = 0, 0, []
    begin = threading.Barrier(4)

    def change() -> None:
        nonlocal inside, most
        begin.wait()
        for _ in range(5):
            try:
                with locked(storage, "landcover", "promote"):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.02)
                    inside -= 1
            except LockedError as error:
                refused.append(error)

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert all("is at work on it" in str(error) for error in refused)
    assert storage.names() == []


def test_a_killed_one_is_forgotten_and_notices_if_it_was_only_asleep(storage: Storage) -> None:
    with locked(storage, "landcover", "promote", lease=1000) as require:
        asleep = lock_of(storage)
        before = datetime.now(UTC) - timedelta(seconds=100)
        dead = Holder(who="process 1 on a", verb="promote", since=before, seen=before)
        storage.write(asleep, dead.model_dump_json().encode())
        with (
            pytest.raises(LockedError, match="process 1 on a"),
            locked(storage, "landcover", "deploy", lease=1000),
        ):
            pytest.fail("it may live")
        with locked(storage, "landcover", "deploy"):
            assert lock_of(storage) != asleep
            with pytest.raises(LockedError, match=r"no sign of life for 1000 s.*promote again"):
                require()


def test_one_that_lives_says_so_all_the_time(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)

    def seen() -> datetime:
        data = storage.read(lock_of(storage))
        assert data is not None
        return Holder.model_validate_json(data).seen

    with locked(storage, "landcover", "deploy", lease=1.2):
        begun, end = seen(), time.monotonic() + 60
        while seen() - begun < timedelta(seconds=1.5):
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_lock_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "landcover.lock.1").write_text("{")
    with (
        pytest.raises(ServingError, match=r"landcover\.lock\.1: not a lock as terrafine writes"),
        locked(Storage.at(tmp_path), "landcover", "deploy"),
    ):
        pytest.fail("nobody knows who is at work")
