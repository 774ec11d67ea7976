"""Crops, symmetries, reading ahead, schedule and loss."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
import torch

from terrafine.errors import TrainingError, WorkerError
from terrafine.training import Crops, learning_rate
from terrafine.training.data import SYMMETRIES, WholeChips, as_indexes, symmetry
from terrafine.training.feed import AHEAD, read_ahead
from terrafine.training.loss import IGNORED, WeightedCrossEntropy, counted_target
from tests.unit.training_scene import LEGEND, Landscape


def crops(**changes: object) -> Crops:
    arguments: dict[str, object] = {
        "source": Landscape(),
        "indexes": as_indexes([5, 1, 2]),
        "legend": LEGEND,
        "crop": 32,
        "crops_per_chip": 4,
        "flips_and_rotations": True,
        "seed": 7,
        "epoch": 1,
    }
    return Crops(**(arguments | changes))  # type: ignore[arg-type]


def test_the_eight_symmetries_differ_and_keep_every_pixel() -> None:
    square = np.arange(9).reshape(3, 3)
    turned = [symmetry(square, which) for which in range(SYMMETRIES)]
    assert len({t.tobytes() for t in turned}) == 8
    assert all(sorted(t.ravel()) == list(range(9)) for t in turned)
    assert np.array_equal(turned[0], square)


def test_image_and_label_are_turned_together() -> None:
    source = Landscape()
    source.image[:, 0] = source.label
    for position in range(12):
        image, target = crops(source=source)[position]
        assert np.array_equal(LEGEND.index_table[image[0]], target)


def test_every_chip_is_cropped_equally_often_in_every_epoch() -> None:
    for epoch in (1, 2):
        chips = [crops(epoch=epoch).place(i)[0] for i in range(12)]
        assert sorted(chips) == [1] * 4 + [2] * 4 + [5] * 4


def test_a_crop_is_a_function_of_seed_epoch_and_position() -> None:
    def places(**changes: object) -> list[tuple[int, int, int, int]]:
        return [crops(**changes).place(i) for i in range(12)]

    assert places() == places()
    # whatever was asked for before
    assert crops().place(11) == places()[11]
    assert places(epoch=2) != places()
    assert places(seed=8) != places()


def test_crops_reach_every_corner_of_the_chip_and_every_symmetry() -> None:
    places = [crops(crops_per_chip=200).place(i) for i in range(600)]
    assert {row for _, row, _, _ in places} == set(range(17))
    assert {col for _, _, col, _ in places} == set(range(17))
    assert {which for *_, which in places} == set(range(8))
    assert {crops(flips_and_rotations=False).place(i)[3] for i in range(12)} == {0}
    assert crops(crop=48).place(0)[1:3] == (0, 0)


GROUPS = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_loading_processes_do_not_change_the_batches() -> None:
    def loaded(workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(read_ahead(crops(), GROUPS, workers=workers, pin_memory=False))

    alone, shared = loaded(0), loaded(2)
    assert [len(image) for image, _ in alone] == [5, 5, 2]
    assert np.array_equal(alone[1][0][0], crops()[5][0])
    for (image, target), (image2, target2) in zip(alone, shared, strict=True):
        assert image.dtype == torch.uint16
        assert torch.equal(image.int(), image2.int())
        assert torch.equal(target, target2)


def test_only_a_few_batches_are_read_ahead_and_none_once_training_stops() -> None:
    source = Landscape()
    many = [[position] for position in range(12)]
    with closing(read_ahead(crops(source=source), many, workers=0, pin_memory=False)) as reading:
        next(reading)
        # time enough to read all that it will
        time.sleep(0.5)
        assert source.crops_read == 1 + AHEAD
    assert source.crops_read == 1 + AHEAD
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("chips")]


class _Dying(Landscape):
    """As if the machine's memory ran out in a reading process."""

    def crop(self, index: int, row: int, col: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_lost_reading_process_is_explained() -> None:
    with pytest.raises(WorkerError, match=r"a process that reads chips stopped .*loader_workers"):
        list(read_ahead(crops(source=_Dying()), GROUPS, workers=1, pin_memory=False))


@pytest.mark.parametrize("workers", [0, 1])
def test_label_that_is_no_class_is_named_with_its_chip(workers: int) -> None:
    source = Landscape()
    source.label[2] = 7
    source.label[2, :, :5] = 0
    with pytest.raises(TrainingError, match=r"^chip 2 \(field-2\): label code 7 \(\d+ pixels\) is"):
        list(read_ahead(crops(source=source), GROUPS, workers=workers, pin_memory=False))


def test_chip_of_another_type_or_size_is_named() -> None:
    source = Landscape()
    source.image = source.image.astype(np.float32)  # type: ignore[assignment]
    with pytest.raises(TrainingError, match=r"chip \d \(field-\d\): its image is float32"):
        crops(source=source)[0]
    source = Landscape()
    source.label = source.label[:, :40]
    with pytest.raises(TrainingError, match=r"its label is uint8 \(40, 48\), not uint8 of 48 x 48"):
        WholeChips(source, as_indexes([0]), LEGEND)[0]


def test_validation_chips_are_whole_in_order_and_unturned() -> None:
    source = Landscape()
    source.label[4, 0, :2] = 0
    chips = WholeChips(source, as_indexes([4, 0]), LEGEND)
    image, target = chips[0]
    assert len(chips) == 2
    assert np.array_equal(image, source.image[4])
    assert target[0, :2].tolist() == [IGNORED, IGNORED]
    assert np.array_equal(LEGEND.code_table[target[1:]], source.label[4, 1:])


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_learning_rate_falls_from_its_start_towards_zero_without_reaching_it(schedule) -> None:
    rates = [learning_rate(schedule, 0.01, step, 50) for step in range(50)]
    assert rates[0] == pytest.approx(0.01)
    assert all(before > after > 0 for before, after in pairwise(rates))
    assert rates[-1] < 0.0004


def test_poly_schedule_has_the_customary_power_and_constant_stays() -> None:
    assert learning_rate("poly", 0.01, 25, 50) == pytest.approx(0.01 * 0.5**0.9)
    assert learning_rate("cosine", 0.01, 25, 50) == pytest.approx(0.005)
    assert learning_rate("constant", 0.01, 49, 50) == 0.01


def test_loss_is_torchs_weighted_mean_over_the_pixels_that_count() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5)).to(torch.uint8)
    labels[0, 0] = IGNORED
    valid = torch.ones(2, 5, 5, dtype=torch.bool)
    valid[1, 4] = False
    target = counted_target(labels, valid)
    assert (target[0, 0] == IGNORED).all()
    assert (target[1, 4] == IGNORED).all()
    total, weight = WeightedCrossEntropy((1.0, 1.0, 3.0))(logits, target)
    keep = target != IGNORED
    expected = torch.nn.functional.cross_entropy(
        logits.permute(0, 2, 3, 1)[keep], target[keep], torch.tensor([1.0, 1.0, 3.0])
    )
    assert (total / weight).item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_a_batch_without_labels_is_zero() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    total, weight = WeightedCrossEntropy((1.0, 1.0, 3.0))(logits, torch.full((1, 4, 4), IGNORED))
    total.backward()
    assert (total.item(), weight.item()) == (0.0, 0.0)
    assert logits.grad is not None
    assert not logits.grad.any()
