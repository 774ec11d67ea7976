"""Training learns, repeats itself, and says what it cannot be done with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from terrafine.errors import LossError, TrainingError
from terrafine.models import RawInput, RawModel, build_network
from terrafine.spec import ModelSpec
from terrafine.storage import Storage
from terrafine.training import EpochRecord, TrainingResult, choose_device, learning_rate
from terrafine.training.checkpoint import Checkpoints
from terrafine.training.data import WholeChips, as_indexes
from terrafine.training.evaluate import Evaluation, evaluate
from terrafine.training.feed import read_ahead
from terrafine.training.loss import WeightedCrossEntropy
from tests.unit.training_scene import (
    CHIPS,
    EPOCHS,
    FILL,
    LEGEND,
    SPEC,
    Landscape,
    losses,
    run,
    same,
    small_hrnet,
    tiny_model,
    with_spec,
)


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
    model = ModelSpec(arch="hrnet_w2", stem_channels=8, first_norm="batch")
    network = build_network(model, bands=2, classes=len(LEGEND.classes))
    result = run(
        tmp_path,
        model=RawModel(RawInput([500.0, 500.0], [160.0, 160.0], FILL), network),
        spec=with_spec(crops_per_chip=10, learning_rate=0.2),
        epochs=6,
    )
    first, best = result.history[0], result.history[result.best_epoch - 1]
    # a third would be chance
    assert best.validation_agreement > 0.55
    assert result.history[-1].train_loss < 0.75 * first.train_loss


def test_validation_after_two_steps_does_not_overflow(tmp_path: Path) -> None:
    """Running statistics are far behind then; over 40 blocks that compounds."""
    result = run(tmp_path, model=small_hrnet(), epochs=1)
    assert result.history[0].validation_loss < 1e4


def test_history_has_a_record_of_every_epoch_that_goes_into_json(finished) -> None:
    result, _ = finished
    assert [r.epoch for r in result.history] == list(range(1, EPOCHS + 1))
    assert result.history[0].learning_rate == pytest.approx(SPEC.learning_rate)
    for record in result.history:
        assert EpochRecord.model_validate_json(record.model_dump_json()) == record
        assert list(json.loads(record.model_dump_json())["validation_recall"]) == list(LEGEND.names)
        assert record.seconds > 0
        assert record.pixels_per_second > 0
        assert 0 <= record.loader_wait < 1
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
        read_ahead(chips, [[0], [1]], workers=0, pin_memory=False),
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


class Poisoned(nn.Module):
    """Stands for a network whose loss is no number on crops of the chip marked so."""

    MARK = 64000

    def __init__(self) -> None:
        super().__init__()
        self.healthy = tiny_model().network

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        marked = (scaled[:, :1] * 160 + 500 > self.MARK - 1).flatten(1).any(dim=1)
        logits: torch.Tensor = self.healthy(scaled)
        return torch.where(marked[:, None, None, None], torch.nan, logits)


def marked_landscape() -> Landscape:
    source = Landscape()
    source.image[2] = Poisoned.MARK
    return source


def poisoned_model() -> RawModel:
    return RawModel(RawInput([500.0, 500.0], [160.0, 160.0], FILL), Poisoned())


def test_loss_that_is_no_number_stops_training_and_names_step_and_chips(tmp_path: Path) -> None:
    source = marked_landscape()
    spec = with_spec(batch=1, checkpoint_steps=1)
    says = (
        r"epoch 1, step (\d) \(\1 in all\): the loss is nan on chips 2 \(field-2\)[;,] "
        r".*learning_rate"
    )
    with pytest.raises(TrainingError, match=says) as caught:
        run(tmp_path, source, model=poisoned_model(), spec=spec, train=[2, 0, 1, 3])
    step = losses(tmp_path)[-1][0]
    assert f"step {step + 1} (" in str(caught.value)
    assert f"the checkpoint of step {step} is kept in {tmp_path}" in str(caught.value)
    # the last good state is there, and healthy
    kept = Checkpoints(Storage.at(tmp_path)).newest()
    assert kept is not None
    assert kept.step == step
    assert all(torch.isfinite(value).all() for value in kept.model.values())


def test_all_chips_of_the_bad_batch_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1, step [12] .*no checkpoint yet") as caught:
        run(tmp_path, marked_landscape(), model=poisoned_model(), spec=with_spec(batch=7))
    named = set(re.findall(r"(\d) \(field-\1\)", str(caught.value)))
    assert "2" in named
    assert named <= set("0123")
    assert list(tmp_path.rglob("*.pt")) == []


# gradients are finite at first, weights are not
OVERFLOWING = with_spec(batch=1, learning_rate=1e39)
CHIP = r"\d \(field-\d\)"


def test_chips_of_the_step_that_spoilt_the_weights_are_named(tmp_path: Path) -> None:
    says = rf"step 2 .*: the loss is nan on chips ({CHIP}), after a step on chips ({CHIP}); "
    with pytest.raises(LossError, match=says):
        run(tmp_path, spec=OVERFLOWING)


def test_chips_before_a_checkpoint_that_cannot_be_are_named(tmp_path: Path) -> None:
    spec = OVERFLOWING.model_copy(update={"checkpoint_steps": 1})
    says = rf"no longer finite after step 1, .*; step 1 was taken on chips {CHIP}$"
    with pytest.raises(LossError, match=says):
        run(tmp_path, spec=spec)


def test_chips_before_a_validation_that_is_no_number_are_named(tmp_path: Path) -> None:
    def spoil(model: RawModel) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(torch.inf)

    says = rf"epoch 1: the loss on the validation .*; step 2 was taken on chips ({CHIP}, )+{CHIP};"
    with pytest.raises(LossError, match=says):
        run(tmp_path, after_epoch=spoil)


class Hungry(nn.Module):
    """Stands for a network that a GPU has no memory for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"
        )


@pytest.mark.parametrize(
    ("micro_batch", "says"),
    [
        (
            None,
            r"^4 crops of 32 x 32 .*allocate 2.00 GiB\); lower training\.micro_batch \(now 4\)$",
        ),
        (3, r"^3 crops .*; lower training\.micro_batch \(now 3\)$"),
        (1, r"^1 crops .*; lower training\.crop \(now 32\)$"),
    ],
)
def test_crops_that_do_not_fit_on_the_gpu_are_told_with_what_to_lower(
    tmp_path: Path, micro_batch: int | None, says: str
) -> None:
    model = RawModel(RawInput([500.0, 500.0], [160.0, 160.0], FILL), Hungry())
    with pytest.raises(TrainingError, match=says):
        run(tmp_path, model=model, spec=with_spec(micro_batch=micro_batch))


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


def test_label_that_is_no_class_stops_training_and_is_named(tmp_path: Path) -> None:
    source = Landscape()
    source.label[5, 0, 0] = 7
    with pytest.raises(TrainingError, match=r"chip 5 \(field-5\): label code 7 \(1 pixels\)"):
        run(tmp_path, source)


def test_one_chip_without_labels_among_others_is_harmless(tmp_path: Path) -> None:
    source = Landscape()
    source.label[0] = 0
    spec = with_spec(batch=1)
    result = run(tmp_path, source, spec=spec, epochs=1, train=[0, 1])
    assert np.isfinite(result.history[0].train_loss)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": []}, "no training chip; .* lower filter.min_agreement"),
        ({"validation": []}, "no validation chip; raise chips.validation_fraction or lower"),
        ({"validation": [CHIPS]}, f"validation chip {CHIPS} is not in the chip store"),
        ({"spec": with_spec(crop=64)}, "crop 64 is larger than the chips"),
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
    result = run(tmp_path, spec=with_spec(precision="bf16"))
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
    result = run(tmp_path, spec=with_spec(device="cuda"))
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert all(t.device.type == "cpu" for t in result.best_state.values())
