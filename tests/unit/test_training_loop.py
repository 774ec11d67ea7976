"""Training learns, repeats itself, and survives being killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from terrafine.errors import TrainingError
from terrafine.models import RawInput, RawModel, build_network
from terrafine.spec import ModelSpec
from terrafine.training import EpochRecord, TrainingResult, choose_device, learning_rate
from terrafine.training.checkpoint import FILE_NAME
from terrafine.training.data import WholeChips, as_indexes, batches
from terrafine.training.evaluate import Evaluation, evaluate
from terrafine.training.loss import WeightedCrossEntropy
from tests.unit import training_scene
from tests.unit.training_scene import (
    CHIPS,
    EPOCHS,
    FILL,
    LEGEND,
    SPEC,
    Landscape,
    run,
    same,
    tiny_model,
)

CROPS_PER_EPOCH = 4 * SPEC.crops_per_chip + 2


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks lose more to the hand-over between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, Path]:
    """A training that nothing disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    return run(folder), folder


def test_network_learns_the_landscape(tmp_path: Path) -> None:
    network = build_network(
        ModelSpec(arch="hrnet_w2", first_norm="batch"), bands=2, classes=len(LEGEND.classes)
    )
    result = run(
        tmp_path,
        model=RawModel(RawInput([500.0, 500.0], [160.0, 160.0], FILL), network),
        spec=SPEC.model_copy(update={"crops_per_chip": 10, "learning_rate": 0.2}),
        epochs=6,
    )
    first, best = result.history[0], result.history[result.best_epoch - 1]
    # a third would be chance
    assert best.validation_agreement > 0.55
    assert result.history[-1].train_loss < 0.75 * first.train_loss


def test_validation_after_two_steps_does_not_overflow(finished) -> None:
    """Running statistics are far behind then; over 40 blocks that compounds."""
    assert finished[0].history[0].validation_loss < 1e4


def test_history_has_a_record_of_every_epoch_that_goes_into_json(finished) -> None:
    result, _ = finished
    assert [r.epoch for r in result.history] == list(range(1, EPOCHS + 1))
    assert result.history[0].learning_rate == pytest.approx(SPEC.learning_rate)
    for record in result.history:
        assert EpochRecord.model_validate_json(record.model_dump_json()) == record
        assert list(json.loads(record.model_dump_json())["validation_recall"]) == list(LEGEND.names)
        assert record.seconds > 0
        assert record.pixels_per_second > 0
    # two steps in every epoch
    rates = [r.learning_rate for r in result.history]
    expected = [learning_rate("poly", SPEC.learning_rate, 2 * i, 2 * EPOCHS) for i in range(EPOCHS)]
    assert rates == pytest.approx(expected)


def test_best_state_is_the_weights_of_the_epoch_that_agrees_most(finished, tmp_path: Path) -> None:
    result, _ = finished
    best = max(result.history, key=lambda r: (r.validation_agreement, -r.validation_loss))
    assert result.best_epoch == best.epoch
    # loaded into a network and asked again, they agree as much
    model = tiny_model(seed=9)
    model.load_state_dict(result.best_state)
    model.eval()
    source = Landscape()
    with torch.no_grad():
        found = model(torch.from_numpy(source.image[4:])).argmax(1)
    share = float((LEGEND.code_table[found.numpy()] == source.label[4:]).mean())
    assert share == pytest.approx(best.validation_agreement, abs=2e-4)
    assert all(t.is_contiguous() and t.device.type == "cpu" for t in result.best_state.values())


def test_of_equal_agreement_the_lower_loss_is_better() -> None:
    record = EpochRecord(
        epoch=1,
        learning_rate=0.1,
        train_loss=1.0,
        validation_loss=1.0,
        validation_agreement=0.5,
        validation_recall={},
        seconds=1.0,
        pixels_per_second=1.0,
    )
    assert record.model_copy(update={"validation_loss": 0.9}).beats(record)
    assert record.model_copy(update={"validation_agreement": 0.6, "validation_loss": 2.0}).beats(
        record
    )
    assert not record.beats(record)


def test_agreement_and_recall_are_shares_of_the_products_pixels() -> None:
    found = Evaluation(loss=0.1, counts=torch.tensor([[6, 2, 0], [0, 0, 0], [1, 0, 1]]))
    assert found.agreement == pytest.approx(0.7)
    assert found.recall == [0.75, None, 0.5]


class Brightness(nn.Module):
    """Stands for a network that knows the landscape, but takes all water for town."""

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        number = scaled[:, 0] * 160 + 500
        wood = number < 400
        return torch.stack([wood.float(), torch.zeros_like(number), (~wood).float()], dim=1)


def test_recall_is_of_the_products_classes_not_of_the_networks() -> None:
    source = Landscape()
    source.image[5, 0, :5] = FILL
    model = RawModel(RawInput([500.0, 500.0], [160.0, 160.0], FILL), Brightness())
    chips = WholeChips(source, as_indexes([4, 5]), LEGEND)
    found = evaluate(
        model,
        batches(chips, batch=1, workers=0, pin_memory=False),
        WeightedCrossEntropy((1.0, 1.0, 3.0)),
        device=torch.device("cpu"),
        autocast=torch.autocast("cpu", enabled=False),
    )
    assert found.recall == [1.0, 0.0, 1.0]
    counted = np.concatenate([source.label[4].ravel(), source.label[5, 5:].ravel()])
    assert int(found.counts.sum()) == counted.size
    assert found.agreement == pytest.approx(float((counted != 4).mean()))


def test_same_seed_gives_the_same_weights_and_another_seed_others(finished, tmp_path: Path) -> None:
    result, _ = finished
    again = run(tmp_path / "again", epochs=EPOCHS)
    assert same(again.best_state, result.best_state)
    assert again.history[-1].train_loss == result.history[-1].train_loss
    other = run(tmp_path / "other", epochs=1, seed=4)
    assert other.history[0].train_loss != result.history[0].train_loss


def test_torchs_own_settings_are_left_as_they_were(finished, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    run(tmp_path, epochs=1)
    assert torch.equal(torch.rand(2), expected)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("crops_into_third_epoch", [0, 5])
def test_killed_training_goes_on_after_the_last_full_epoch_and_ends_the_same(
    finished, tmp_path: Path, crops_into_third_epoch: int
) -> None:
    stop = 2 * CROPS_PER_EPOCH + crops_into_third_epoch
    mark = tmp_path / "stalled"
    root = Path(training_scene.__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, training_scene.__file__, str(tmp_path), str(stop)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not mark.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert mark.exists()
    result, _ = finished
    source = Landscape()
    # other first weights: what counts is in the checkpoint
    resumed = run(tmp_path, source, model=tiny_model(seed=8))
    assert source.crops_read == 2 * CROPS_PER_EPOCH
    assert resumed.best_epoch == result.best_epoch
    assert same(resumed.best_state, result.best_state)
    ours = torch.load(tmp_path / FILE_NAME, weights_only=True)
    whole = torch.load(finished[1] / FILE_NAME, weights_only=True)
    assert same(ours["model"], whole["model"])
    timing = {"seconds", "pixels_per_second"}
    assert [r.model_dump(exclude=timing) for r in resumed.history] == [
        r.model_dump(exclude=timing) for r in result.history
    ]


def test_finished_training_is_not_repeated(finished) -> None:
    result, folder = finished
    source = Landscape()
    again = run(folder, source)
    assert source.crops_read == 0
    assert again.history == result.history
    assert same(again.best_state, result.best_state)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"epochs": EPOCHS + 1},
        {"train": [0, 1, 2]},
        {"class_weights": (1.0, 1.0, 1.0)},
        {"spec": SPEC.model_copy(update={"learning_rate": 0.1})},
    ],
)
def test_checkpoint_of_another_training_is_refused(finished, changes: dict) -> None:
    with pytest.raises(TrainingError, match=r"last\.pt: .*another|other settings.*delete it"):
        run(finished[1], **changes)


def test_another_number_of_loading_processes_is_the_same_training(finished) -> None:
    result, folder = finished
    again = run(folder, spec=SPEC.model_copy(update={"loader_workers": 2, "device": "auto"}))
    assert again.history == result.history


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(TrainingError, match=r"last\.pt: the checkpoint cannot be read"):
        run(tmp_path)


def test_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"fingerprint": Payload()}, tmp_path / FILE_NAME)
    with pytest.raises(TrainingError, match="cannot be read"):
        run(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_full_disk_keeps_the_last_checkpoint_and_leaves_no_half_file(finished, tmp_path) -> None:
    content = (finished[1] / FILE_NAME).read_bytes()
    run(tmp_path, epochs=1, spec=SPEC.model_copy(update={"schedule": "constant"}))
    before = (tmp_path / FILE_NAME).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"checkpoint cannot be written: .*free space"):
            run(tmp_path / "new", epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "new").iterdir()) == []
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="file/folder"):
        run(tmp_path / "file" / "folder", epochs=1)


def test_loss_that_is_no_number_stops_training_and_names_epoch_and_step(tmp_path: Path) -> None:
    source = Landscape()
    with pytest.raises(TrainingError, match=r"epoch 1, step [12]: the loss is (nan|inf).*rate"):
        run(tmp_path, source, spec=SPEC.model_copy(update={"learning_rate": 1e30}))
    assert not (tmp_path / FILE_NAME).exists()


def test_missing_and_unlabelled_pixels_do_not_count(tmp_path: Path) -> None:
    """Labels there may be anything: training takes the same way."""

    def result(label: int, image: int) -> TrainingResult:
        source = Landscape()
        source.image[:, 0, 10:20] = FILL
        source.label[:, 10:20] = label
        source.image[:, 1, 10:20] = image
        return run(tmp_path / f"{label}-{image}", source, epochs=1)

    first = result(2, 100)
    assert same(first.best_state, result(9, 60000).best_state)
    assert same(first.best_state, result(0, 100).best_state)


def test_chips_without_any_label_cannot_be_trained_on(tmp_path: Path) -> None:
    source = Landscape()
    source.label[:4] = 0
    with pytest.raises(TrainingError, match=r"no pixel of the training chips has a label"):
        run(tmp_path / "train", source, epochs=1)
    source = Landscape()
    source.label[4:] = 0
    with pytest.raises(TrainingError, match=r"epoch 1: no pixel of the validation chips"):
        run(tmp_path / "validation", source, epochs=1)


def test_one_chip_without_labels_among_others_is_harmless(tmp_path: Path) -> None:
    source = Landscape()
    source.label[0] = 0
    spec = SPEC.model_copy(update={"batch": 1})
    result = run(tmp_path, source, spec=spec, epochs=1, train=[0, 1])
    assert np.isfinite(result.history[0].train_loss)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": []}, "no training chip"),
        ({"validation": []}, "no validation chip"),
        ({"validation": [CHIPS]}, f"validation chip {CHIPS} is not in the chip store"),
        ({"spec": SPEC.model_copy(update={"crop": 64})}, "crop 64 is larger than the chips"),
        ({"class_weights": (1.0, 1.0)}, "2 class weights for the 3 classes"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict, says: str
) -> None:
    with pytest.raises(TrainingError, match=says):
        run(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_half_precision_takes_nearly_the_same_way_with_weights_in_full(finished, tmp_path) -> None:
    result = run(tmp_path, spec=SPEC.model_copy(update={"precision": "bf16"}))
    first, in_full = result.history[0].train_loss, finished[0].history[0].train_loss
    assert first == pytest.approx(in_full, rel=0.05)
    assert first != in_full
    assert all(t.dtype in (torch.float32, torch.int64) for t in result.best_state.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_named_where_there_is_none() -> None:
    assert choose_device("auto").type == "cpu"
    with pytest.raises(TrainingError, match=r"training\.device is cuda"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_code_trains_on_cuda(tmp_path: Path) -> None:
    result = run(tmp_path, spec=SPEC.model_copy(update={"device": "cuda"}))
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert all(t.device.type == "cpu" for t in result.best_state.values())
