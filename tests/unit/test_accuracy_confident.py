"""How a label product errs, estimated from what a model trained on it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafine.accuracy.confident import confident_confusion
from terrafine.accuracy.published import published_confusion
from terrafine.legend import SEVEN

PUBLISHED = np.array(published_confusion("FROM-GLC10", SEVEN))


def product_of(
    shares_K: list[float], pixels: int, seed: int = 0, unsure: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """What a model learns of labels that err as published, and the labels; ``unsure``: how much
    its probabilities lean to all classes alike, up to which share of them."""
    rng = np.random.default_rng(seed)
    true_n = rng.choice(7, pixels, p=np.array(shares_K) / sum(shares_K))
    label_n = np.array([rng.choice(7, p=row / row.sum()) for row in PUBLISHED[true_n]])
    lean_n1 = unsure * rng.random((pixels, 1))
    return (1 - lean_n1) * PUBLISHED[true_n] + lean_n1 / 7, label_n


@pytest.mark.parametrize("unsure", [0.0, 0.4])
def test_the_confusion_of_the_labels_is_found_without_a_truth(unsure: float) -> None:
    found = confident_confusion(*product_of([3, 3, 2, 1, 1, 3, 0.5], 60_000, unsure=unsure))
    np.testing.assert_allclose(found, PUBLISHED, atol=0.03)


def test_a_class_that_does_not_occur_is_taken_at_its_word() -> None:
    probability, label = product_of([1, 1, 1, 1, 1, 1, 0], 20_000)
    known = label != 6
    found = confident_confusion(probability[known], label[known])
    assert found[6, 6] > 0.99
    np.testing.assert_allclose(found[:6, 6], 0.001, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 200), st.integers(1, 5))
def test_whatever_the_model_says_every_row_is_a_share_and_nothing_is_impossible(
    seed: int, pixels: int, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.ones(classes), pixels).astype(np.float32)
    found = confident_confusion(probability, rng.integers(0, classes, pixels))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found > 0).all()


def test_labels_that_are_right_are_left_so() -> None:
    rng = np.random.default_rng(0)
    true_n = rng.integers(0, 4, 5000)
    probability = 0.9 * np.eye(4)[true_n] + 0.025
    np.testing.assert_allclose(confident_confusion(probability, true_n), np.eye(4), atol=0.01)
