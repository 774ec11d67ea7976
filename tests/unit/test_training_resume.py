"""A training that was stopped goes on from its last checkpoint and ends as if it never had been."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from terrafine.errors import LossError, StorageError, TrainingError
from terrafine.spec import ModelSpec
from terrafine.stages.fit import TrainingTask, fit
from terrafine.storage import Storage
from terrafine.training import EpochRecord, TrainingResult, read_result
from terrafine.training.checkpoint import Checkpoint, Checkpoints
from tests.buckets import s3_bucket
from tests.disks import small_disk
from tests.unit import training_kills, training_scene
from tests.unit.training_scene import (
    EPOCHS,
    LEGEND,
    SPEC,
    FewLayers,
    Landscape,
    StopAfter,
    losses,
    run,
    same,
    tiny_model,
    with_spec,
)

# two steps in every epoch, and two validation chips
CROPS_PER_EPOCH = 4 * SPEC.crops_per_chip + 2
EVERY_STEP = with_spec(checkpoint_steps=1)
ROOT = Path(training_scene.__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, Path]:
    """A training that nothing disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    return run(folder), folder


def newest(folder: Path) -> Checkpoint:
    found = Checkpoints(Storage.at(folder)).newest()
    assert found is not None
    return found


def without_timing(history: tuple[EpochRecord, ...]) -> list[dict[str, object]]:
    timing = {"seconds", "pixels_per_second", "loader_wait"}
    return [record.model_dump(exclude=timing) for record in history]


def require_same_end(folder: Path, result: TrainingResult, whole: Path) -> None:
    """The training in ``folder`` took the way of the one in ``whole`` to the last bit."""
    expected = read_result(Storage.at(whole))
    assert expected is not None
    assert result.best_epoch == expected.best_epoch
    assert same(result.best_state, expected.best_state)
    assert without_timing(result.history) == without_timing(expected.history)
    ours, theirs = newest(folder), newest(whole)
    assert same(ours.model, theirs.model)
    for mine, other in zip(*(c.optimiser["state"].values() for c in (ours, theirs)), strict=True):
        assert torch.equal(mine["momentum_buffer"], other["momentum_buffer"])
    # neither gaps nor doubles
    assert losses(folder) == losses(whole)
    curve = json.loads((folder / "history.json").read_text())
    assert [record["epoch"] for record in curve] == list(range(1, len(result.history) + 1))


@pytest.mark.parametrize(
    ("steps", "crops_read_again"),
    [
        # stopped in the middle of the second epoch, and between it and the third
        (3, 4 + 2 + 2 * CROPS_PER_EPOCH),
        (4, 2 * CROPS_PER_EPOCH),
    ],
)
def test_killed_training_goes_on_in_the_middle_of_an_epoch_and_ends_the_same(
    finished, tmp_path: Path, steps: int, crops_read_again: int
) -> None:
    crops = steps * SPEC.batch + 2 * (steps // 2)
    child = subprocess.Popen(
        [sys.executable, training_scene.__file__, str(tmp_path), str(crops)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    last = tmp_path / "checkpoints" / f"{steps:09d}.json"
    try:
        deadline = time.monotonic() + 120
        while not last.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert newest(tmp_path).step == steps
    source = Landscape()
    # other first weights: what counts is in the checkpoint
    resumed = run(tmp_path, source, model=tiny_model(seed=8))
    assert source.crops_read == crops_read_again
    require_same_end(tmp_path, resumed, finished[1])


def test_finished_training_is_not_repeated(finished) -> None:
    result, folder = finished
    source = Landscape()
    again = run(folder, source)
    assert source.crops_read == 0
    assert again.history == result.history
    assert same(again.best_state, result.best_state)


def test_two_checkpoints_are_kept_and_their_curves_beside_them(finished) -> None:
    _, folder = finished
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.*")]
    stems = [f"checkpoints/{step:09d}" for step in (2 * EPOCHS - 2, 2 * EPOCHS)]
    pairs = [stem + suffix for stem in stems for suffix in (".json", ".pt")]
    assert sorted(names) == [*pairs, "history.json", "steps.csv"]
    assert [step for step, _ in losses(folder)] == list(range(1, 2 * EPOCHS + 1))


def test_result_can_be_read_from_storage_by_who_did_not_train(finished, tmp_path: Path) -> None:
    result, folder = finished
    read = read_result(Storage.at(folder))
    assert read is not None
    assert read.history == result.history
    assert read.best_epoch == result.best_epoch
    assert same(read.best_state, result.best_state)
    assert read_result(Storage.at(tmp_path)) is None


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _lose_digest(path: Path) -> None:
    path.with_suffix(".json").unlink()


def _spoil_digest(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A training stopped by the user after 5 of its 8 steps, with checkpoints of 4 and 5."""

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, spec=EVERY_STEP, observer=StopAfter(5))
    assert Checkpoints(Storage.at(tmp_path)).steps() == [4, 5]
    return tmp_path


def test_an_interrupted_epoch_took_the_seconds_of_both_its_parts(interrupted: Path) -> None:
    before = newest(interrupted)
    longer = replace(before, sums={**before.sums, "seconds": 1000.0})
    Checkpoints(Storage.at(interrupted)).save(longer)
    seconds = [epoch.seconds for epoch in run(interrupted).history]
    assert [taken > 1000 for taken in seconds] == [False, False, True, False]


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink, _lose_digest, _spoil_digest])
def test_damaged_newest_checkpoint_gives_way_to_the_one_before(
    interrupted: Path, finished, damage
) -> None:
    damage(interrupted / "checkpoints" / "000000005.pt")
    assert newest(interrupted).step == 4
    source = Landscape()
    result = run(interrupted, source)
    assert source.crops_read == 2 * CROPS_PER_EPOCH
    require_same_end(interrupted, result, finished[1])


def test_damaged_checkpoint_does_not_count_among_the_two_that_are_kept(interrupted: Path) -> None:
    checkpoints = Checkpoints(Storage.at(interrupted))
    last = newest(interrupted)
    checkpoints.save(replace(last, step=9))
    _truncate(interrupted / "checkpoints" / "000000009.pt")
    # gone on with from step 5
    checkpoints.save(replace(last, step=6))
    assert checkpoints.steps() == [5, 6]


def test_training_without_any_whole_checkpoint_does_not_silently_start_anew(
    interrupted: Path,
) -> None:
    for path in interrupted.glob("checkpoints/*.pt"):
        _truncate(path)
    with pytest.raises(TrainingError, match=r"000000005\.pt: the checkpoint is damaged .*delete"):
        run(interrupted)


def test_what_a_killed_write_left_is_swept_away(interrupted: Path, finished) -> None:
    staged = interrupted / "checkpoints" / "000000006.pt#1"
    staged.write_bytes(b"half")
    # a state whose digest was not written yet
    (interrupted / "checkpoints" / "000000007.pt").write_bytes(b"state")
    result = run(interrupted)
    assert not staged.exists()
    require_same_end(interrupted, result, finished[1])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": 4}, "seed"),
        ({"epochs": EPOCHS + 1}, "settings"),
        ({"class_weights": (1.0, 1.0, 1.0)}, "settings"),
        ({"spec": with_spec(learning_rate=0.1)}, "settings"),
        ({"train": [0, 1, 2]}, "chips"),
        ({"legend": LEGEND.model_copy(update={"name": "other"})}, "legend"),
        ({"model": training_scene.small_hrnet()}, "architecture"),
        ({"model": training_scene.small_hrnet(), "seed": 4}, "architecture and seed"),
    ],
)
def test_checkpoint_of_another_training_is_refused_by_what_differs(
    finished, changes: dict, part: str
) -> None:
    with pytest.raises(TrainingError, match=rf"\.pt: .*another training: its {part} (is|are) not"):
        run(finished[1], **changes)


def test_checkpoint_that_another_part_identifies_too_is_refused(finished, tmp_path: Path) -> None:
    run(tmp_path, epochs=1, also_identified_by={"pruning": "0.4"})
    with pytest.raises(TrainingError, match=r"another training: its pruning is not the same"):
        run(tmp_path, epochs=1)


def test_strides_of_the_stem_make_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights have the same names and shapes."""
    monkeypatch.setattr("terrafine.stages.fit.open_chips", lambda place: Landscape())

    def task(*strides: int) -> TrainingTask:
        return TrainingTask(
            chips="in memory",
            train=(0, 1),
            validation=(4,),
            model=ModelSpec(arch="hrnet_w2", stem_channels=8, stem_strides=strides),  # type: ignore[arg-type]
            mean=(500.0, 500.0),
            std=(160.0, 160.0),
            fill=training_scene.FILL,
            legend=LEGEND,
            class_weights=(1.0, 1.0, 3.0),
            training=with_spec(crops_per_chip=1),
            epochs=1,
            seed=0,
            storage=str(tmp_path),
            run="test/train",
            heading="train",
        )

    fit(task(2, 2))
    with pytest.raises(TrainingError, match=r"another training: its model is not the same"):
        fit(task(2, 1))


def test_how_a_machine_goes_about_it_makes_no_other_training(finished) -> None:
    result, folder = finished
    spec = with_spec(loader_workers=2, device="auto", workers=3, checkpoint_steps=7)
    again = run(folder, spec=spec)
    assert again.history == result.history


def test_checkpoint_with_code_in_it_is_not_run(interrupted: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    storage = Storage.at(interrupted)
    state = interrupted / "checkpoints" / "000000005.pt"
    torch.save({"identity": Payload()}, state)
    digest = {"step": 5, "sha256": hashlib.sha256(state.read_bytes()).hexdigest()}
    storage.write("checkpoints/000000005.json", json.dumps(digest).encode())
    with pytest.raises(TrainingError, match="cannot be read by this version"):
        run(interrupted)
    assert not (tmp_path / "owned").exists()


def test_weights_that_are_no_longer_numbers_are_never_saved(interrupted: Path) -> None:
    """The loss of the step before them still was one."""
    bad = newest(interrupted)
    bad.model["network.0.weight"][0] = torch.inf
    checkpoints = Checkpoints(Storage.at(interrupted))
    says = r"network\.0\.weight is no longer finite after step 6.* step 5 is kept"
    with pytest.raises(LossError, match=says):
        checkpoints.save(replace(bad, step=6))
    assert checkpoints.steps() == [4, 5]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", kilobytes=1600)


def test_full_disk_keeps_the_checkpoint_before_and_training_goes_on_once_there_is_space(
    disk: Path, tmp_path: Path
) -> None:
    def heavy() -> object:
        # 200 kB of weights: 400 kB for every checkpoint, of which three are there at times
        return tiny_model(ballast=50_000)

    run(tmp_path / "whole", model=heavy())
    filling = disk / "other people's data"
    filling.write_bytes(bytes(700_000))
    with pytest.raises(StorageError, match=r"checkpoint of step \d cannot be written: .*No space"):
        run(disk / "run", model=heavy(), spec=EVERY_STEP)
    kept = newest(disk / "run")
    assert kept.step >= 1
    assert not list(disk.rglob("*#*"))
    filling.unlink()
    result = run(disk / "run", model=heavy())
    require_same_end(disk / "run", result, tmp_path / "whole")


def test_full_disk_message_says_what_is_kept(disk: Path) -> None:
    (disk / "other people's data").write_bytes(bytes(1_500_000))
    with pytest.raises(StorageError, match=r"No space left.*there is no checkpoint yet"):
        run(disk / "run", model=tiny_model(ballast=100_000))


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file/folder"):
        run(tmp_path / "file" / "folder", epochs=1)


def test_few_layers_has_everything_that_must_be_carried_along() -> None:
    kinds = {type(module).__name__ for module in FewLayers(2, dropout=0.2)}
    assert {"BatchNorm2d", "Dropout2d"} <= kinds


def test_checkpoints_in_a_bucket_are_resumed_like_those_on_disk(finished, tmp_path: Path) -> None:
    with s3_bucket() as bucket:
        storage = Storage.at(f"{bucket}/runs/one")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, storage=storage, spec=EVERY_STEP, observer=StopAfter(5))
        source = Landscape()
        result = run(tmp_path, source, storage=storage)
        assert source.crops_read == 4 + 2 + CROPS_PER_EPOCH
        for name in storage.names():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(storage.read(name) or b"")
    require_same_end(tmp_path, result, finished[1])


def test_bucket_that_is_not_there_is_named(tmp_path: Path) -> None:
    with s3_bucket(), pytest.raises(StorageError, match=r"s3://nobodys/run.*: cannot"):
        run(tmp_path, storage=Storage.at("s3://nobodys/run"))


@pytest.mark.slow
def test_kills_at_any_moment_never_leave_a_checkpoint_that_loads_half(tmp_path: Path) -> None:
    command = [sys.executable, training_kills.__file__, str(tmp_path / "killed"), "1", "10"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=200
    )
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(seen) >= 3
    newest_step = 0
    for steps, rest in seen:
        # at most the step under way is lost, and one checkpoint is always there to go back to
        assert not steps or steps[-1] >= newest_step
        newest_step = steps[-1] if steps else newest_step
        assert len(steps) >= min(newest_step, 1)
        assert len(rest) <= 3
    # kills did hit a checkpoint being written
    assert any(rest for _, rest in seen)
    expected = training_kills.train(tmp_path / "whole")
    result = training_kills.train(tmp_path / "killed")
    assert same(result.best_state, expected.best_state)
    require_same_end(tmp_path / "killed", result, tmp_path / "whole")
