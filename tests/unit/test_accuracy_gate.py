"""The gate: promotes what is shown to be good, and refuses everything that is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from terrafine.accuracy import (
    AccuracyReport,
    GateDecision,
    GateEvidence,
    PairedComparison,
    Samples,
    assess,
    compare,
    decide,
)
from terrafine.legend import SEVEN
from terrafine.spec import GateSpec

N = 1000


def maps(right_map: int, right_product: int, n: int = N) -> Samples:
    """Half cropland, half woodland; each map errs on the first n - right samples."""
    reference = np.tile(np.array([1, 2], np.uint8), n // 2)
    wrong = (3 - reference).astype(np.uint8)
    place = np.arange(n)
    mapped = np.where(place < n - right_map, wrong, reference)
    product = np.where(place < n - right_product, wrong, reference)
    return Samples(mapped, reference, other=product)


def report_of(samples: Samples, name: str = "map") -> AccuracyReport:
    return assess(
        samples, SEVEN, map_name=name, reference_name="points", kind="points", resamples=200
    )


def paired(samples: Samples, second: str) -> PairedComparison:
    return compare(samples, SEVEN.codes, first="map", second=second, resamples=500)


def evidence(samples: Samples) -> GateEvidence:
    return GateEvidence(
        report=report_of(samples),
        product=report_of(samples.of_other(), "product"),
        against_product=paired(samples, "product"),
    )


GOOD = evidence(maps(900, 800))
FLOOR = GateSpec(better_than_product=False, min_overall_accuracy=0.5)


def refused(decision: GateDecision, reason: str) -> None:
    assert not decision.passed
    assert any(reason in r for r in decision.reasons), decision.reasons
    assert "refused" in decision.to_markdown()
    assert reason in decision.to_markdown()


def test_a_better_map_is_promoted() -> None:
    spec = GateSpec(
        min_overall_accuracy=0.85,
        min_users_accuracy={"cropland": 0.8},
        min_producers_accuracy={"woodland": 0.8},
        min_samples_per_class=400,
    )
    decision = decide(spec, GOOD)
    assert decision.passed
    assert not decision.reasons
    assert len(decision.rules) == 8
    assert "map is promoted" in decision.to_markdown()
    assert GateDecision.model_validate_json(decision.model_dump_json()) == decision


def test_a_map_that_is_only_as_good_as_the_product_is_refused() -> None:
    refused(decide(GateSpec(), evidence(maps(800, 800))), "not shown to be better")
    refused(decide(GateSpec(), evidence(maps(700, 800))), "not shown to be better")


def test_the_margin_is_measured_at_the_lower_bound() -> None:
    low = GOOD.against_product.difference.low
    assert 0.07 < low < 0.1
    assert decide(GateSpec(margin=low - 0.001), GOOD).passed
    refused(decide(GateSpec(margin=low + 0.001), GOOD), "not shown to be better")
    refused(decide(GateSpec(margin=0.099), GOOD), "not shown to be better")
    assert decide(GateSpec(margin=-0.2), evidence(maps(750, 800))).passed


def test_every_floor_holds_or_refuses() -> None:
    assert decide(FLOOR, GOOD).passed
    refused(
        decide(FLOOR.model_copy(update={"min_overall_accuracy": 0.901}), GOOD), "below the floor"
    )
    for key in ("min_users_accuracy", "min_producers_accuracy"):
        assert decide(FLOOR.model_copy(update={key: {"cropland": 0.9}}), GOOD).passed
        refused(decide(FLOOR.model_copy(update={key: {"cropland": 0.91}}), GOOD), "below the floor")


def test_a_floor_on_a_class_that_the_reference_lacks_is_refused() -> None:
    for key in ("min_users_accuracy", "min_producers_accuracy"):
        for floor in (0.0, 0.5):
            spec = FLOOR.model_copy(update={key: {"water": floor}})
            refused(decide(spec, GOOD), "the reference has no sample of water")
        refused(decide(FLOOR.model_copy(update={key: {"tundra": 0.1}}), GOOD), "no class tundra")


def test_a_floor_on_a_class_that_is_never_mapped_is_refused() -> None:
    samples = Samples(np.ones(100, np.uint8), np.tile(np.array([1, 2], np.uint8), 50))
    spec = FLOOR.model_copy(update={"min_users_accuracy": {"woodland": 0.0}})
    refused(decide(spec, GateEvidence(report_of(samples))), "woodland is never mapped")


def test_too_few_samples_are_refused() -> None:
    few = evidence(maps(48, 20, n=48))
    refused(decide(GateSpec(), few), "48 samples are too few")
    refused(decide(FLOOR, few), "48 samples are too few")
    assert decide(GateSpec(min_samples=48), few).passed
    refused(
        decide(GateSpec(min_samples_per_class=501), GOOD),
        "too few reference samples of cropland 500",
    )
    floored = GateSpec(min_samples_per_class=10, min_producers_accuracy={"water": 0.0})
    refused(decide(floored, GOOD), "too few reference samples of water 0")


def test_too_many_unmapped_samples_are_refused() -> None:
    samples = maps(900, 800)
    mapped = samples.mapped.copy()
    mapped[-11:] = 0
    found = evidence(replace(samples, mapped=mapped))
    refused(decide(GateSpec(), found), "no class at too many reference samples")
    assert decide(GateSpec(max_unmapped=0.02), found).passed


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({"report": None}, "the candidate was not assessed"),
        ({"product": None}, "the label product was not assessed"),
        ({"against_product": None}, "not compared with the label product"),
    ],
)
def test_missing_evidence_is_refused(missing: dict[str, Any], reason: str) -> None:
    refused(decide(GateSpec(), replace(GOOD, **missing)), reason)


def test_nothing_at_all_is_refused() -> None:
    for spec in (GateSpec(), FLOOR, GateSpec(champion="champion"), GateSpec(max_unmapped=1)):
        refused(decide(spec, GateEvidence()), "the candidate was not assessed")


def test_a_report_without_samples_is_refused_by_every_rule() -> None:
    nothing = evidence(
        Samples(*(np.zeros(0, np.uint8) for _ in range(2)), other=np.zeros(0, np.uint8))
    )
    spec = GateSpec(
        max_unmapped=1,
        min_overall_accuracy=0,
        min_users_accuracy={"cropland": 0},
        min_samples_per_class=1,
        champion="champion",
    )
    decision = decide(spec, replace(nothing, against_champion=nothing.against_product))
    assert len(decision.rules) == 8
    assert not any(rule.passed for rule in decision.rules)


def test_a_gate_without_a_rule_is_refused() -> None:
    bare = GateSpec(better_than_product=False)
    refused(decide(bare, GOOD), "a gate that asks nothing promotes anything")
    conditions = bare.model_copy(update={"min_samples": 1, "min_samples_per_class": 1})
    refused(decide(conditions, GOOD), "no rule")


def test_evidence_of_other_samples_is_refused() -> None:
    other = evidence(maps(90, 80, n=100))
    refused(decide(GateSpec(), replace(GOOD, product=other.product)), "at the same samples")
    refused(
        decide(GateSpec(), replace(GOOD, against_product=other.against_product)),
        "at the same samples",
    )
    elsewhere = GOOD.product.model_copy(update={"reference_name": "other points"})
    refused(decide(GateSpec(), replace(GOOD, product=elsewhere)), "other references")


def test_a_product_that_covers_few_samples_is_no_comparison() -> None:
    samples = maps(900, 800)
    product = samples.other.copy()
    product[40:] = 0
    refused(decide(GateSpec(), evidence(replace(samples, other=product))), "only 40 samples")


def test_figures_without_an_interval_are_refused() -> None:
    """All pixels in one block: figures, but nothing is known of their spread."""
    samples = replace(maps(900, 800), unit=np.zeros(N, np.int64))
    refused(decide(GateSpec(), evidence(samples)), "too few independent units")
    refused(decide(FLOOR, evidence(samples)), "too few independent units")
    spec = FLOOR.model_copy(update={"champion": "champion"})
    found = replace(GOOD, against_champion=paired(samples, "champion"))
    refused(decide(spec, found), "too few independent units")


def test_nan_that_slipped_past_the_models_is_refused() -> None:
    nan = float("nan")
    hollow = GOOD.report.overall_accuracy.model_copy(update={"value": nan, "low": nan, "high": nan})
    report = GOOD.report.model_copy(update={"overall_accuracy": hollow})
    refused(decide(FLOOR, replace(GOOD, report=report)), "below the floor")
    comparison = GOOD.against_product.model_copy(update={"difference": hollow, "p_value": nan})
    refused(decide(GateSpec(), replace(GOOD, against_product=comparison)), "not shown to be better")
    champion = decide(GateSpec(champion="c"), replace(GOOD, against_champion=comparison))
    refused(champion, "worse than the champion")
    for margin in (nan, float("-inf")):
        with pytest.raises(ValidationError, match="finite"):
            GateSpec(margin=margin)
        hollow_spec = GateSpec.model_construct(**{**GateSpec().model_dump(), "margin": margin})
        refused(decide(hollow_spec, GOOD), "no finite number")


def test_many_pixels_in_few_blocks_are_too_few() -> None:
    """Neighbouring pixels are no independent samples."""
    reference = np.ones(2000, np.uint8)
    samples = Samples(reference, reference, np.arange(2000) // 100)
    report = GateEvidence(report_of(samples))
    refused(decide(FLOOR, report), "20 independent units are too few")
    assert decide(FLOOR.model_copy(update={"min_units": 20}), report).passed


CHAMPION = GateSpec(better_than_product=False, champion="models/champion", min_units=20)


@pytest.mark.parametrize(("right", "passes"), [(910, True), (900, True), (897, True), (880, False)])
def test_the_champion_falls_only_to_a_candidate_that_is_not_worse(right: int, passes: bool) -> None:
    found = replace(GOOD, against_champion=paired(maps(right, 900), "champion"))
    decision = decide(CHAMPION, found)
    assert decision.passed is passes
    if not passes:
        refused(decision, "worse than the champion at the 95 % level")


def test_a_champion_without_a_comparison_is_refused() -> None:
    refused(decide(CHAMPION, GOOD), "not compared with the champion")
    short = replace(GOOD, against_champion=paired(maps(90, 80, n=100), "champion"))
    refused(decide(CHAMPION, short), "at the same samples")


def test_few_blocks_with_a_large_loss_are_worse_although_few() -> None:
    """Six blocks are lost wholly, fourteen gain a pixel: the sign test alone would pass."""
    reference = np.ones(2000, np.uint8)
    unit = np.arange(2000) // 100
    mapped, champion = reference.copy(), reference.copy()
    mapped[unit >= 14] = 2
    champion[np.flatnonzero(unit < 14)[::100]] = 2
    comparison = paired(Samples(mapped, reference, unit, champion), "champion")
    assert comparison.units_for_first > comparison.units_for_second
    report = report_of(Samples(mapped, reference, unit))
    decision = decide(CHAMPION, GateEvidence(report, against_champion=comparison))
    refused(decision, "worse than the champion")


def block_comparison(gained: int) -> GateDecision:
    """Twenty blocks of 100 pixels: nineteen lose a pixel each, one gains ``gained``."""
    reference = np.ones(2000, np.uint8)
    unit = np.arange(2000) // 100
    mapped, champion = reference.copy(), reference.copy()
    mapped[:1900:100] = 2
    champion[1900 : 1900 + gained] = 2
    samples = Samples(mapped, reference, unit, champion)
    comparison = paired(samples, "champion")
    assert comparison.difference.high >= 0
    assert comparison.p_value < 0.001
    return decide(CHAMPION, GateEvidence(report_of(samples), against_champion=comparison))


def test_a_small_loss_in_almost_every_block_is_worse_although_one_block_gains() -> None:
    refused(block_comparison(gained=15), "worse than the champion")


def test_a_candidate_that_is_better_overall_is_not_worse() -> None:
    assert block_comparison(gained=40).passed


def test_a_comparison_the_wrong_way_round_is_refused() -> None:
    samples = maps(700, 800)
    turned = compare(
        replace(samples, mapped=samples.other, other=samples.mapped),
        SEVEN.codes,
        first="product",
        second="map",
    )
    refused(
        decide(GateSpec(), replace(evidence(samples), against_product=turned)),
        "compare the candidate (first)",
    )


def test_a_decision_cannot_claim_to_pass_with_a_failed_rule() -> None:
    data = decide(CHAMPION, GOOD).model_dump() | {"passed": True}
    with pytest.raises(ValidationError, match="run the gate again"):
        GateDecision.model_validate(data)
    with pytest.raises(ValidationError, match="run the gate again"):
        GateDecision.model_validate(data | {"rules": ()})
