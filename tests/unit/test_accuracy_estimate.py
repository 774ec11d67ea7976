"""Intervals and paired tests: they must cover, respect clusters, and be reproducible."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from terrafine.accuracy import (
    DONG_MAP_3M,
    DONG_PRODUCT_10M,
    ConfusionMatrix,
    Samples,
    compare,
    estimate,
    mcnemar_mid_p,
    sample,
)
from terrafine.accuracy.confusion import CLASS_FIGURES, OVERALL_FIGURES
from terrafine.errors import AccuracyError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.spec import AssessSpec, ChipsSpec, ReferenceSpec

CODES = SEVEN.codes


def codes(values: object) -> np.ndarray:
    return np.asarray(values, np.uint8)


def test_the_papers_half_width_of_oa_at_1940_points() -> None:
    matrix = ConfusionMatrix(DONG_MAP_3M, CODES)
    oa = estimate(Samples.from_matrix(matrix), CODES, resamples=4000).figures["overall_accuracy"]
    assert oa.value == matrix.overall_accuracy
    normal = 1.96 * math.sqrt(oa.value * (1 - oa.value) / 1940)
    assert (oa.high - oa.low) / 2 == pytest.approx(normal, rel=0.06)
    assert f"{100 * (oa.high - oa.low) / 2:.1f}" == "1.5"


def test_every_figure_lies_inside_its_interval() -> None:
    found = estimate(Samples.from_matrix(ConfusionMatrix(DONG_PRODUCT_10M, CODES)), CODES)
    assert set(found.figures) == set(OVERALL_FIGURES)
    assert set(found.class_figures) == set(CLASS_FIGURES)
    figures = [*found.figures.values(), *(f for row in found.class_figures.values() for f in row)]
    assert len(figures) == 10 + 4 * 7
    for figure in figures:
        assert figure.low < figure.value < figure.high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    truth, hits = 0.8, 0
    for trial in range(200):
        right = rng.random(300) < truth
        samples = Samples(codes(np.where(right, 1, 2)), codes(np.ones(300)))
        oa = estimate(samples, CODES, resamples=300, seed=trial).figures["overall_accuracy"]
        hits += oa.low <= truth <= oa.high
    assert 0.90 <= hits / 200 <= 0.99


@dataclass(frozen=True)
class Patches:
    """A map that is right on ``truth`` of an endless plain, by patches of 50 x 50 pixels."""

    right: np.ndarray
    truth: float = 0.8

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Patches:
        return cls(rng.random((24, 24)) < cls.truth)

    def read(self, grid: PixelGrid, window: Window) -> np.ndarray:
        """The reference: cropland everywhere."""
        return np.ones(window.shape, np.uint8)

    def map(self, window: Window) -> np.ndarray:
        rows, cols = (np.arange(*ends) // 50 for ends in (
            (window.row, window.stop_row), (window.col, window.stop_col)
        ))  # fmt: skip
        return np.where(self.right[np.ix_(rows, cols)], 1, 2).astype(np.uint8)


def held_out_coverage(unit: int | None) -> int:
    """In how many of 100 maps, assessed on 30 held-out chips, the 95 % interval has the truth."""
    chips = ChipsSpec(size=64, block=1)
    assess = AssessSpec(reference=ReferenceSpec(file="r.tif"), unit=unit)
    grid, hits = PixelGrid("EPSG:32650", 3.0, 3.0, 0.0, 0.0), 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        land = Patches.drawn(rng)
        places = rng.choice(18 * 18, 30, replace=False)
        windows = [Window(64 * int(p // 18), 64 * int(p % 18), 64, 64) for p in places]
        samples = sample(land.map, grid, windows, land, unit=assess.unit_of(chips))
        oa = estimate(samples, CODES, resamples=300, seed=trial).figures["overall_accuracy"]
        hits += oa.low <= land.truth <= oa.high
    return hits


def test_intervals_over_what_was_held_out_cover_the_truth_where_errors_come_in_patches() -> None:
    """Neighbouring blocks of 16 pixels err together, so that intervals over them are too narrow."""
    assert held_out_coverage(None) >= 90
    assert held_out_coverage(16) < 75


def test_the_resampled_unit_is_the_held_out_block_unless_the_spec_says_otherwise() -> None:
    reference = ReferenceSpec(file="r.tif")
    chips = ChipsSpec(size=256, block=3)
    assert AssessSpec(reference=reference).unit_of(chips) == 768
    assert AssessSpec(reference=reference, unit=32).unit_of(chips) == 32


def test_intervals_of_ten_units_are_as_wide_as_students() -> None:
    """Plain percentiles would have the truth nine times in ten."""
    rng, hits = np.random.default_rng(5), 0
    for trial in range(600):
        gain = rng.binomial(200, rng.normal(0.5, 0.1, 10).clip(0.1, 0.9))
        right = np.arange(200) < gain[:, None]
        first = codes(np.where(right, 1, 2).ravel())
        second = codes(np.where(right, 2, 1).ravel())
        samples = Samples(first, codes(np.ones(2000)), np.arange(10).repeat(200), second)
        found = compare(samples, CODES, first="a", second="b", seed=trial).difference
        hits += found.low <= 0 <= found.high
    assert 0.925 <= hits / 600 <= 0.98


def test_pixels_of_one_block_count_as_one_observation() -> None:
    """Copying every sample 64 times adds no information when the copies share a unit."""
    rng = np.random.default_rng(0)
    mapped = codes(np.where(rng.random(200) < 0.7, 1, 2))
    reference = codes(np.ones(200))
    alone = estimate(Samples(mapped, reference), CODES, resamples=3000)
    copied = Samples(mapped.repeat(64), reference.repeat(64), np.arange(200).repeat(64))
    clustered = estimate(copied, CODES, resamples=3000)
    pretended = estimate(Samples(copied.mapped, copied.reference), CODES, resamples=3000)

    def width(found: object) -> float:
        oa = found.figures["overall_accuracy"]  # type: ignore[attr-defined]
        return float(oa.high - oa.low)

    assert clustered.units == 200
    assert width(clustered) == pytest.approx(width(alone), rel=0.1)
    assert width(pretended) == pytest.approx(width(alone) / 8, rel=0.1)


def test_units_of_one_sample_are_drawn_like_independent_samples() -> None:
    rng = np.random.default_rng(1)
    mapped, reference = (codes(rng.integers(1, 5, 400)) for _ in range(2))
    unit = rng.permutation(10_000)[:400].astype(np.int64)
    alone = estimate(Samples(mapped, reference), CODES)
    numbered = estimate(Samples(mapped, reference, unit), CODES)
    assert alone.figures == numbered.figures
    assert numbered.units == 400


sampled = st.integers(2, 80).flatmap(
    lambda n: st.tuples(
        *[
            st.lists(st.integers(low, high), min_size=n, max_size=n)
            for low, high in ((0, 4), (0, 4), (0, 4), (0, 6))
        ]
    )
)


@settings(max_examples=60, deadline=None)
@given(sampled)
def test_counted_entries_say_the_same_as_single_samples(
    drawn: tuple[list[int], list[int], list[int], list[int]],
) -> None:
    mapped, reference, other, unit = (np.array(values) for values in drawn)
    single = Samples(codes(mapped), codes(reference), unit, codes(other))
    kinds, count = np.unique(np.stack([mapped, reference, other, unit]), axis=1, return_counts=True)
    m, r, o, u = kinds
    counted = Samples(codes(m), codes(r), u, codes(o), count)
    first, second = (estimate(s, CODES, resamples=100) for s in (single, counted))
    np.testing.assert_array_equal(first.matrix.counts, second.matrix.counts)
    expected = ConfusionMatrix.from_codes(codes(mapped), codes(reference), CODES)
    np.testing.assert_array_equal(first.matrix.counts, expected.counts)
    assert (first.unmapped, first.units) == (second.unmapped, second.units)
    assert first.figures == second.figures
    names = {"first": "a", "second": "b"}
    assert compare(single, CODES, **names) == compare(counted, CODES, **names)


def test_the_seed_alone_decides_the_intervals() -> None:
    samples = Samples.from_matrix(ConfusionMatrix(DONG_MAP_3M, CODES))
    one, same, other = (estimate(samples, CODES, seed=seed) for seed in (1, 1, 2))
    assert one.figures == same.figures
    assert one.figures != other.figures


def test_unmapped_samples_are_counted_and_in_no_figure() -> None:
    mapped, reference = codes([1, 0, 255, 2, 1, 0, 0]), codes([1, 1, 2, 2, 0, 0, 255])
    assert Samples(mapped, reference).size == 4
    found = estimate(Samples(mapped, reference), CODES)
    assert found.unmapped == 2
    assert found.matrix.total == 2
    assert found.figures["overall_accuracy"].value == 1


def test_a_perfect_share_of_few_samples_does_not_claim_certainty() -> None:
    """Snow of the 3-m map: 3 of 3 mapped samples are right; Clopper and Pearson give 29 %."""
    found = estimate(Samples.from_matrix(ConfusionMatrix(DONG_MAP_3M, CODES)), CODES)
    snow = found.class_figures["users_accuracy"][6]
    assert (snow.value, snow.high) == (1, 1)
    assert snow.low == pytest.approx(binomtest(3, 3).proportion_ci(0.95, "exact").low)
    only = estimate(Samples(codes([1] * 10 + [2] * 5), codes([1] * 10 + [3] * 5)), CODES)
    iou, f1 = (only.class_figures[name][0] for name in ("iou", "f1"))
    assert iou.low == pytest.approx(binomtest(10, 10).proportion_ci(0.95, "exact").low)
    assert f1.low == pytest.approx(2 * iou.low / (1 + iou.low))
    none_right = estimate(Samples(codes([2] * 10), codes([1] * 10)), CODES)
    oa = none_right.figures["overall_accuracy"]
    assert (oa.value, oa.low) == (0, 0)
    assert oa.high == pytest.approx(binomtest(0, 10).proportion_ci(0.95, "exact").high)


def test_one_unit_gives_figures_but_no_interval() -> None:
    found = estimate(Samples(codes([1, 2, 1]), codes([1, 1, 1]), np.zeros(3, np.int64)), CODES)
    oa = found.figures["overall_accuracy"]
    assert oa.value == pytest.approx(2 / 3)
    assert oa.low is oa.high is None


def test_no_sample_at_all_leaves_every_figure_undefined() -> None:
    found = estimate(Samples.concatenate([]), CODES)
    assert found.units == 0
    assert all(figure.value is figure.low is None for figure in found.figures.values())


def test_a_million_units_stay_within_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    units = 1_000_000
    mapped, reference = (codes(rng.integers(1, 4, 2 * units)) for _ in range(2))
    samples = Samples(mapped, reference, np.arange(units).repeat(2))
    tracemalloc.start()
    found = estimate(samples, CODES, resamples=40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.units == units
    # A dense stack of 7 x 7 matrices alone would be 392 MB.
    assert peak < 350e6


def test_the_paired_difference_of_two_maps() -> None:
    reference = codes([1] * 1000)
    first = codes([1] * 860 + [2] * 140)
    second = codes([1] * 800 + [2] * 200)
    found = compare(Samples(first, reference, other=second), CODES, first="map", second="product")
    assert found.difference.value == pytest.approx(0.06)
    assert (found.only_first_right, found.only_second_right) == (60, 0)
    # Paired: spread of the 60 discordant samples only, sqrt(0.06 * 0.94 / 1000) = 0.0075.
    assert found.difference.low == pytest.approx(0.06 - 1.96 * 0.0075, abs=0.002)
    assert found.difference.high == pytest.approx(0.06 + 1.96 * 0.0075, abs=0.002)
    assert found.p_value < 1e-12
    back = compare(Samples(second, reference, other=first), CODES, first="product", second="map")
    assert back.difference.value == pytest.approx(-0.06)
    assert back.p_value == found.p_value


def test_only_samples_that_both_maps_have_are_paired() -> None:
    found = compare(
        Samples(codes([1, 0, 1, 1]), codes([1, 1, 1, 0]), other=codes([2, 1, 255, 1])),
        CODES,
        first="map",
        second="product",
    )
    assert (found.samples, found.reference_samples) == (1, 3)
    assert found.p_value is not None
    assert found.difference.low is None  # one unit


def test_the_sign_test_counts_blocks_and_not_their_pixels() -> None:
    reference = codes([1] * 600)
    first, second = codes([1] * 600), codes([2] * 400 + [1] * 200)
    unit = np.arange(6).repeat(100)
    found = compare(Samples(first, reference, unit, second), CODES, first="map", second="product")
    assert (found.units_for_first, found.units_for_second) == (4, 0)
    assert found.p_value == pytest.approx(mcnemar_mid_p(4, 0)) == pytest.approx(0.0625)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (1, 7, 0.0391),  # airway hyper-responsiveness, Fagerland et al. 2013, Table 1
        (0, 0, 1.0),
        (5, 5, 1 - 252 / 1024 / 2),  # equal counts, their supplement
        (0, 5, 0.03125),
    ],
)
def test_mid_p_values_are_the_published_ones(first: int, second: int, p: float) -> None:
    assert mcnemar_mid_p(first, second) == pytest.approx(p, abs=5e-5)


def test_units_of_two_zones_stay_apart() -> None:
    zone = Samples(codes([1, 2]), codes([1, 1]), np.zeros(2, np.int64))
    joined = Samples.concatenate([zone, zone])
    assert estimate(joined, CODES).units == 2
    assert joined.size == 4


def test_samples_of_different_kinds_are_not_joined() -> None:
    block = Samples(codes([1]), codes([1]), np.zeros(1, np.int64))
    with pytest.raises(AccuracyError, match="'unit'"):
        Samples.concatenate([block, Samples(codes([1]), codes([1]))])


def test_samples_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(AccuracyError, match="reference has shape"):
        Samples(codes([1, 2]), codes([1]))
    with pytest.raises(AccuracyError, match="no second map"):
        compare(Samples(codes([1]), codes([1])), CODES, first="map", second="product")
    with pytest.raises(AccuracyError, match="no second map"):
        Samples(codes([1]), codes([1])).of_other()
