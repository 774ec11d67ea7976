"""Confusion matrices: the paper's printed figures, and agreement with scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics

from terrafine.accuracy import DONG_MAP_3M, DONG_PRODUCT_10M, ConfusionMatrix
from terrafine.accuracy.confusion import OVERALL_FIGURES
from terrafine.errors import AccuracyError
from terrafine.legend import SEVEN

CODES = SEVEN.codes

# Printed in Dong et al. 2020: Tables 2 and 3, and section 4.1 for kappa, mIoU and mF1.
PRINTED = {
    "10-m product": (
        DONG_PRODUCT_10M,
        "71.27 86.34 66.67 89.90 89.80 87.38 55.56",
        "78.27 85.35 62.05 91.75 69.11 92.93 50.00",
        "369 432 282 99 147 602 9",
        ("81.24", "0.764", "63.85", "76.62"),
    ),
    "3-m map": (
        DONG_MAP_3M,
        "79.89 87.47 79.08 93.33 89.82 90.64 100.00",
        "83.93 89.47 73.60 86.60 78.53 95.76 30.00",
        "353 447 282 90 167 598 3",
        ("86.34", "0.828", "68.72", "79.93"),
    ),
}


def percents(values: np.ndarray) -> str:
    return " ".join(f"{100 * v:.2f}" for v in values)


@pytest.mark.parametrize("table", PRINTED)
def test_every_printed_figure_of_the_paper_is_reproduced(table: str) -> None:
    counts, users, producers, sums, (oa, kappa, miou, mf1) = PRINTED[table]
    matrix = ConfusionMatrix(counts, CODES)
    assert percents(matrix.users_accuracy) == users
    assert percents(matrix.producers_accuracy) == producers
    assert " ".join(map(str, matrix.mapped_totals)) == sums
    assert list(matrix.reference_totals) == [336, 437, 303, 97, 191, 566, 10]
    assert matrix.total == 1940
    assert f"{100 * matrix.overall_accuracy:.2f}" == oa
    assert f"{matrix.kappa:.3f}" == kappa
    assert f"{100 * matrix.overall('mean_iou'):.2f}" == miou
    assert f"{100 * matrix.overall('mean_f1'):.2f}" == mf1


def test_the_published_matrices_cannot_be_changed_by_who_imports_them() -> None:
    assert DONG_PRODUCT_10M.dtype == DONG_MAP_3M.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        DONG_PRODUCT_10M[0, 0] = 1


pairs = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        *[hnp.arrays(np.uint8, n, elements=st.sampled_from(CODES[:5])) for _ in range(2)]
    )
)


@settings(max_examples=150, deadline=None)
@given(pairs)
def test_agrees_with_scikit_learn(sampled: tuple[np.ndarray, np.ndarray]) -> None:
    mapped, reference = sampled
    matrix = ConfusionMatrix.from_codes(mapped, reference, CODES)
    np.testing.assert_array_equal(
        matrix.counts, metrics.confusion_matrix(reference, mapped, labels=CODES).T
    )
    assert matrix.overall_accuracy == pytest.approx(metrics.accuracy_score(reference, mapped))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"labels": list(CODES), "average": None, "zero_division": np.nan}
        expected = {
            "users_accuracy": metrics.precision_score(reference, mapped, **options),
            "producers_accuracy": metrics.recall_score(reference, mapped, **options),
            "f1": metrics.f1_score(reference, mapped, **options),
        }
        kappa = metrics.cohen_kappa_score(reference, mapped)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(matrix, name), values, err_msg=name)
    np.testing.assert_allclose(matrix.kappa, kappa, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(pairs)
def test_means_agree_with_scikit_learn_for_both_denominators(
    sampled: tuple[np.ndarray, np.ndarray],
) -> None:
    mapped, reference = sampled
    matrix = ConfusionMatrix.from_codes(mapped, reference, CODES)
    occurring, present = np.union1d(mapped, reference), np.unique(reference)
    for classes, ending in ((occurring, ""), (present, "_of_reference_classes")):
        options = {"labels": classes, "average": "macro"}
        assert matrix.overall(f"mean_iou{ending}") == pytest.approx(
            metrics.jaccard_score(reference, mapped, **options)
        )
        assert matrix.overall(f"mean_f1{ending}") == pytest.approx(
            metrics.f1_score(reference, mapped, **options)
        )
        recall = metrics.recall_score(
            reference, mapped, labels=classes, average=None, zero_division=np.nan
        )
        assert matrix.overall(f"mean_producers_accuracy{ending}") == pytest.approx(
            np.nanmean(recall)
        )


def test_the_two_means_differ_by_classes_that_only_the_map_has() -> None:
    # Half of the cropland is mapped as water, which the reference does not have.
    matrix = ConfusionMatrix.from_codes(
        np.array([1, 1, 4, 4, 2], np.uint8), np.array([1, 1, 1, 1, 2], np.uint8), CODES
    )
    assert matrix.overall("mean_iou") == pytest.approx((0.5 + 1 + 0) / 3)
    assert matrix.overall("mean_iou_of_reference_classes") == pytest.approx((0.5 + 1) / 2)


def test_what_is_undefined_is_nan_and_not_zero() -> None:
    matrix = ConfusionMatrix.from_codes(
        np.array([1, 1], np.uint8), np.array([1, 2], np.uint8), CODES
    )
    assert np.isnan(matrix.users_accuracy[1])  # woodland is never mapped
    assert matrix.producers_accuracy[1] == 0  # but it is in the reference
    assert np.isnan(matrix.iou[2])
    assert np.isnan(matrix.f1[2])
    empty = ConfusionMatrix(np.zeros((7, 7), np.int64), CODES)
    assert all(np.isnan(empty.overall(name)) for name in OVERALL_FIGURES)


def test_pairs_without_a_class_are_left_out() -> None:
    mapped = np.array([[1, 0, 255], [2, 2, 3]], np.uint8)
    reference = np.array([[1, 1, 1], [0, 255, 3]], np.uint8)
    assert ConfusionMatrix.from_codes(mapped, reference, CODES).total == 2


def test_codes_of_another_legend_are_named() -> None:
    good, other = np.array([1, 2], np.uint8), np.array([1, 80], np.uint8)
    with pytest.raises(AccuracyError, match=r"the map holds codes \[80\].*crosswalk"):
        ConfusionMatrix.from_codes(other, good, CODES)
    with pytest.raises(AccuracyError, match=r"the reference holds codes \[80\]"):
        ConfusionMatrix.from_codes(good, other, CODES)


@pytest.mark.parametrize(
    "counts", [np.zeros((6, 7), np.int64), np.full((7, 7), -1), np.full((7, 7), 0.5)]
)
def test_a_matrix_is_square_whole_and_not_negative(counts: np.ndarray) -> None:
    with pytest.raises(AccuracyError):
        ConfusionMatrix(counts, CODES)
