"""A version lies in the repository whole and as it was released, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from serving.triton.config import from_text, to_text
from serving.triton.lock import LockedError
from serving.triton.repository import Event, History, ModelRepository
from terrafine.errors import ModelError, ServingError, StorageError
from terrafine.export import Release
from terrafine.legend import FBP
from terrafine.spec import ServeSpec
from tests.buckets import s3_bucket
from tests.disks import small_disk


@pytest.fixture(params=["disk", "bucket"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelRepository]:
    if request.param == "disk":
        yield ModelRepository(str(tmp_path / "models"), "landcover")
        return
    with s3_bucket() as url:
        yield ModelRepository(f"{url}/models", "landcover")


def test_what_is_staged_is_read_back_and_numbers_only_grow(
    repository: ModelRepository, releases: tuple[Release, Release]
) -> None:
    with pytest.raises(ServingError, match="no candidate is staged"):
        repository.staged()
    assert repository.stage(releases[0], ServeSpec()).number == 1
    assert repository.stage(releases[1], ServeSpec()).number == 2
    staged = repository.staged()
    assert staged.number == 2
    assert staged.info == releases[1].info
    windows, answers = releases[1].canary("fp32")
    assert (staged.windows_NCHW == windows).all()
    assert (staged.answers.other_class_NHW == answers.other_class_NHW).all()
    names = repository.storage.names("landcover-candidate")
    assert names == [
        "landcover-candidate/2/canary.safetensors",
        "landcover-candidate/2/config.pbtxt",
        "landcover-candidate/2/model.onnx",
        "landcover-candidate/2/release.json",
        "landcover-candidate/config.pbtxt",
        "landcover-candidate/warmup/image",
    ]
    assert repository.storage.size(names[-1]) == windows[0].nbytes
    assert repository.champions.serving() is None


@pytest.mark.parametrize(
    "file", ["model.onnx", "release.json", "canary.safetensors", "config.pbtxt"]
)
def test_version_that_was_edited_or_lost_is_refused(
    tmp_path: Path, releases: tuple[Release, Release], file: str
) -> None:
    repository = ModelRepository(str(tmp_path), "landcover")
    repository.stage(releases[0], ServeSpec())
    path = tmp_path / "landcover-candidate" / "1" / file
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a", b"b", 1))
    with pytest.raises(ModelError, match=f"1/{file}: .*(edited|not readable)"):
        repository.staged()
    path.unlink()
    with pytest.raises(ModelError, match=f"1/{file}: is missing"):
        repository.staged()


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("canary_class_agreement", "0.999", "0"),
        ("graph.1", '"terrafine.fill": "0"', '"terrafine.fill": "9"'),
        ("graph.1", '"terrafine.window": "64"', '"terrafine.window": "32"'),
        ("release.1", "", "f"),
    ],
)
def test_configuration_that_was_edited_since_it_was_staged_is_refused(
    tmp_path: Path, releases: tuple[Release, Release], key: str, old: str, new: str
) -> None:
    repository = ModelRepository(str(tmp_path), "landcover")
    repository.stage(releases[0], ServeSpec())
    path = tmp_path / "landcover-candidate" / "1" / "config.pbtxt"
    config = from_text(path.read_text(), where="")
    said = config.parameters[key].string_value
    assert old in said
    config.parameters[key].string_value = said.replace(old, new, 1)
    path.write_text(to_text(config))
    with pytest.raises(ModelError, match=r"1/config\.pbtxt: damaged or edited"):
        repository.staged()


def test_legend_that_is_not_the_release_s_is_refused_even_where_no_digest_is_known(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    repository = ModelRepository(str(tmp_path), "landcover")
    repository.stage(releases[0], ServeSpec())
    path = tmp_path / "landcover-candidate" / "1" / "config.pbtxt"
    config = from_text(path.read_text(), where="")
    graph = json.loads(config.parameters["graph.1"].string_value)
    graph["terrafine.legend"] = FBP.model_dump_json()
    config.parameters["graph.1"].string_value = json.dumps(graph)
    path.write_text(to_text(config))
    with pytest.raises(ModelError, match=r"1/config\.pbtxt: edited, it says another .*legend"):
        repository.candidate.read(1)
    config.parameters["graph.1"].string_value = "{"
    path.write_text(to_text(config))
    with pytest.raises(ServingError, match=r"1/config\.pbtxt: graph\.1 is damaged"):
        repository.candidate.read(1)


def test_a_history_that_somebody_else_changed_meanwhile_is_not_overwritten(
    repository: ModelRepository, releases: tuple[Release, Release]
) -> None:
    staged = repository.stage(releases[0], ServeSpec())
    history = repository.begin("promote", staged)
    assert history.begun is not None
    repository.end(history)
    with pytest.raises(LockedError, match=r"history\.json: somebody else changed the champion"):
        repository.end(history)
    assert [event.version for event in repository.history().events] == [1]
    assert repository.history().begun is None


def test_a_number_that_was_champion_is_not_given_to_another(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    repository = ModelRepository(str(tmp_path), "landcover")
    staged = repository.stage(releases[0], ServeSpec())
    repository.champions.serve([repository.champions.write(1, staged.files)])
    (tmp_path / "landcover" / "history.json").unlink()
    repository.stage(releases[1], ServeSpec())
    with pytest.raises(ServingError, match="version 1 has been champion already; deploy the rel"):
        repository.staged()
    # the remedy
    assert repository.stage(releases[1], ServeSpec()).number == 2
    assert repository.staged().info == releases[1].info


def test_release_that_the_gate_refused_cannot_be_put_there_by_hand(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    repository = ModelRepository(str(tmp_path / "models"), "landcover")
    repository.stage(releases[0], ServeSpec())
    info = releases[0].info
    gate = info.gate.model_copy(update={"passed": False})
    forged = info.model_copy(update={"gate": gate})
    text = forged.model_dump_json()[:-1] + f', "digest": "{forged.digest}"}}'
    (tmp_path / "models/landcover-candidate/1/release.json").write_text(text)
    with pytest.raises(ModelError, match="the gate refused this model"):
        repository.staged()


def test_full_disk_leaves_no_version_and_the_others_as_they_were(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    size = sum(p.stat().st_size for p in releases[0].folder.iterdir())
    # room for one version as candidate and as champion, but not for two champions
    for disk in small_disk(tmp_path / "small", kilobytes=round(2.7 * size / 1024)):
        repository = ModelRepository(str(disk), "landcover")
        staged = repository.stage(releases[0], ServeSpec())
        champion = repository.champions.write(1, staged.files)
        repository.champions.serve([champion])
        staged = repository.stage(releases[1], ServeSpec())
        with pytest.raises(StorageError, match=r"landcover/2/.* cannot write it .*No space"):
            repository.champions.write(2, staged.files)
        assert not (disk / "landcover" / "2").exists()
        assert repository.champions.read(1).info == releases[0].info
        assert list(repository.champions.serving().version_policy.specific.versions) == [1]
        # nor is a candidate left half
        repository.candidate.clear()
        (disk / "in the way").write_bytes(bytes(shutil.disk_usage(disk).free - size // 2))
        with pytest.raises(StorageError, match="No space"):
            repository.stage(releases[1], ServeSpec())
        assert repository.storage.names("landcover-candidate") == []


def test_rollback_goes_back_one_champion_at_a_time() -> None:
    def event(what: Literal["promote", "rollback"], version: int) -> Event:
        now = datetime.now(UTC)
        return Event(event=what, version=version, release="r", model="m", at=now)

    events = [event("promote", 1), event("promote", 2), event("promote", 4)]
    assert [e.version for e in History(events=tuple(events)).champions] == [1, 2, 4]
    events.append(event("rollback", 2))
    assert [e.version for e in History(events=tuple(events)).champions] == [1, 2]
    events.append(event("promote", 5))
    assert [e.version for e in History(events=tuple(events)).champions] == [1, 2, 5]


def test_damaged_history_is_named(tmp_path: Path) -> None:
    repository = ModelRepository(str(tmp_path), "landcover")
    (tmp_path / "landcover").mkdir()
    (tmp_path / "landcover" / "history.json").write_text('{"next_version": 2, "eve')
    with pytest.raises(ServingError, match=r"landcover/history.json: not as it was written"):
        repository.history()
