"""The gate: promote a model or refuse it, with the reasons. It fails closed.

Every rule is written so that only what is known to hold passes: evidence that is missing, NaN,
of other samples, or of too few samples is a refusal with a reason in plain words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import model_validator

from terrafine.accuracy.estimate import Figure, PairedComparison
from terrafine.accuracy.report import AccuracyReport, Frozen, markdown_table
from terrafine.spec import GateSpec


@dataclass(frozen=True)
class GateEvidence:
    """What the gate looks at. None: not measured, which no rule that needs it survives.

    ``report`` and ``product``: of the candidate's map and of the label product at the same
    samples. ``against_product``: candidate (first) with product (second). ``against_champion``:
    candidate (first) with the model now in production (second).
    """

    report: AccuracyReport | None = None
    product: AccuracyReport | None = None
    against_product: PairedComparison | None = None
    against_champion: PairedComparison | None = None


class RuleResult(Frozen):
    """One rule: what it requires, what was found, and why it passed or failed."""

    name: str
    required: str
    found: str
    passed: bool
    reason: str


class GateDecision(Frozen):
    """The verdict. ``passed`` only when there are rules and every one of them holds."""

    passed: bool
    subject: str
    evidence: str
    rules: tuple[RuleResult, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.passed and not (self.rules and all(rule.passed for rule in self.rules)):
            raise ValueError(
                f"gate decision of {self.subject}: it says passed although a rule failed or none "
                "was checked; run the gate again"
            )
        return self

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was refused; empty when it passed."""
        return tuple(f"{rule.name}: {rule.reason}" for rule in self.rules if not rule.passed)

    def to_markdown(self) -> str:
        """The verdict and a table of the rules."""
        verdict = "promoted" if self.passed else "refused"
        table = markdown_table(
            ["rule", "required", "found", "verdict", "reason"],
            [
                [r.name, r.required, r.found, "pass" if r.passed else "FAIL", r.reason]
                for r in self.rules
            ],
        )
        return f"## Gate: {self.subject} is {verdict}\n\n{self.evidence}\n\n{table}\n"


def decide(spec: GateSpec, evidence: GateEvidence) -> GateDecision:
    """Check every rule of ``spec``.

    Sample counts and the unmapped share are conditions of every verdict, not rules that a model
    can show anything by: a spec with nothing else set is refused ("no rule").
    """
    report = evidence.report
    rules: list[RuleResult] = []
    if not _has_rule(spec):
        rules.append(
            _refuse("no rule", "at least one rule of accuracy", "none is set", _NO_RULE_REASON)
        )
    if report is None:
        rules.append(
            _refuse(
                "accuracy report",
                "a report of the candidate's map",
                "missing",
                "the candidate was not assessed; run `terrafine assess` first",
            )
        )
    else:
        rules.extend(_conditions(spec, report))
        rules.extend(_floors(spec, report))
    if spec.better_than_product:
        rules.append(_better_than_product(spec, evidence))
    if spec.champion is not None:
        rules.append(_not_worse_than_champion(spec, evidence))
    return GateDecision(
        passed=all(rule.passed for rule in rules),
        subject="the candidate" if report is None else report.map_name,
        evidence="No assessment." if report is None else _evidence(report),
        rules=tuple(rules),
    )


_NO_RULE_REASON = (
    "a gate that asks nothing promotes anything; set gate.better_than_product, a floor, or "
    "gate.champion"
)


def _has_rule(spec: GateSpec) -> bool:
    return bool(
        spec.better_than_product
        or spec.min_overall_accuracy is not None
        or spec.min_users_accuracy
        or spec.min_producers_accuracy
        or spec.champion is not None
    )


def _evidence(report: AccuracyReport) -> str:
    return (
        f"{report.statement} {report.samples} samples of {report.reference_name}; overall "
        f"accuracy {report.overall_accuracy.percent()} %."
    )


def _conditions(spec: GateSpec, report: AccuracyReport) -> Iterator[RuleResult]:
    """Whether there is enough to judge by."""
    yield _rule(
        "samples",
        f"at least {spec.min_samples}",
        str(report.samples),
        report.samples >= spec.min_samples,
        f"{report.samples} samples are too few for a verdict; add reference samples",
    )
    yield _rule(
        "independent units",
        f"at least {spec.min_units}",
        str(report.units),
        report.units >= spec.min_units,
        f"{report.units} independent units are too few for a verdict; assess a larger area or "
        "more points, or hold out more blocks of the ground (chips.validation_fraction)",
    )
    share = report.unmapped_share
    yield _rule(
        "unmapped samples",
        f"at most {100 * spec.max_unmapped:g} %",
        "undefined" if math.isnan(share) else f"{100 * share:.2f} % ({report.unmapped})",
        share <= spec.max_unmapped,
        "the map has no class at too many reference samples, so its figures leave them out",
    )
    if spec.min_samples_per_class:
        yield _samples_per_class(spec, report)


def _samples_per_class(spec: GateSpec, report: AccuracyReport) -> RuleResult:
    counts = {row.name: row.reference_samples for row in report.classes}
    needed = {name for name, count in counts.items() if count}
    needed |= {*spec.min_users_accuracy, *spec.min_producers_accuracy}
    short = {n: counts.get(n, 0) for n in needed if counts.get(n, 0) < spec.min_samples_per_class}
    listed = ", ".join(f"{name} {count}" for name, count in sorted(short.items()))
    return _rule(
        "samples per class",
        f"at least {spec.min_samples_per_class} of every class in the reference or with a floor",
        listed or "enough of every class",
        bool(needed) and not short,
        f"too few reference samples of {listed or 'any class'} for a verdict on it",
    )


def _floors(spec: GateSpec, report: AccuracyReport) -> Iterator[RuleResult]:
    if spec.min_overall_accuracy is not None:
        yield _floor("overall accuracy", report.overall_accuracy, spec.min_overall_accuracy, None)
    for name, floor in spec.min_users_accuracy.items():
        yield _class_floor("user's", name, floor, report)
    for name, floor in spec.min_producers_accuracy.items():
        yield _class_floor("producer's", name, floor, report)


def _class_floor(
    kind: Literal["user's", "producer's"], name: str, floor: float, report: AccuracyReport
) -> RuleResult:
    rule = f"{kind} accuracy of {name}"
    row = report.class_named(name)
    if row is None:
        absent = f"legend {report.legend} has no class {name}"
        return _refuse(rule, _at_least(floor), "no such class", absent)
    if not row.reference_samples:
        absent = f"the reference has no sample of {name}, so its floor cannot be judged"
        return _refuse(rule, _at_least(floor), "no reference sample", absent)
    figure = row.users_accuracy if kind == "user's" else row.producers_accuracy
    return _floor(rule, figure, floor, f"{name} is never mapped")


def _floor(rule: str, figure: Figure, floor: float, undefined: str | None) -> RuleResult:
    if figure.value is None:
        reason = undefined or "the figure is undefined"
        return _refuse(rule, _at_least(floor), "undefined", reason)
    if figure.low is None:
        reason = "the figure has no interval: too few independent units"
        return _refuse(rule, _at_least(floor), f"{figure.percent()} %", reason)
    return _rule(
        rule, _at_least(floor), f"{figure.percent()} %", figure.value >= floor, "below the floor"
    )


def _at_least(floor: float) -> str:
    return f"at least {100 * floor:g} %"


def _better_than_product(spec: GateSpec, evidence: GateEvidence) -> RuleResult:
    rule, margin = "better than the label product", spec.margin
    required = f"lower bound of OA(map) - OA(product) above {100 * margin:g} points"
    problem = _product_problem(evidence) or _comparison_problem(
        spec, evidence.report, evidence.against_product, "the label product"
    )
    comparison = evidence.against_product
    if problem is not None or comparison is None or not math.isfinite(margin):
        problem = problem or f"gate.margin {margin} is no finite number"
        return _refuse(rule, required, "no usable comparison", problem)
    low = comparison.difference.low
    return _rule(
        rule,
        required,
        _difference(comparison),
        low is not None and low > margin,
        "the map is not shown to be better than the product it was trained on by this margin"
        if low is not None
        else "the difference has no interval: too few independent units",
    )


def _product_problem(evidence: GateEvidence) -> str | None:
    """Why the product's own report cannot be used, in plain words."""
    report, product = evidence.report, evidence.product
    if product is None:
        return "the label product was not assessed, so the map cannot be compared with it"
    if report is None:
        return "the candidate was not assessed"
    if (product.legend_digest, product.reference_name) != (
        report.legend_digest,
        report.reference_name,
    ):
        return "map and product were assessed in other legends or against other references"
    if product.reference_samples != report.reference_samples:
        return (
            f"the product was assessed at {product.reference_samples} samples, the map at "
            f"{report.reference_samples}; assess both at the same samples"
        )
    if product.overall_accuracy.value is None:
        return "the label product has no class at any reference sample"
    return None


def _not_worse_than_champion(spec: GateSpec, evidence: GateEvidence) -> RuleResult:
    """Refuses when either paired test finds the candidate's overall accuracy worse.

    The interval sees how large a loss is, the mid-p test how often units turn for the worse; in
    blocks of pixels the two can differ, and the gate believes the sterner one. A candidate that
    is better overall is not refused because most blocks lose a little.
    """
    rule, required = "not worse than the champion", "no paired test finds it worse"
    comparison = evidence.against_champion
    problem = _comparison_problem(spec, evidence.report, comparison, "the champion")
    if problem is not None or comparison is None:
        return _refuse(rule, required, "no usable comparison", problem or "missing")
    alpha = 1 - comparison.confidence
    p, value, high = comparison.p_value, comparison.difference.value, comparison.difference.high
    if p is None or value is None or high is None:
        undefined = "the paired tests are undefined: too few independent units"
        return _refuse(rule, required, "undefined", undefined)
    fewer = comparison.units_for_first < comparison.units_for_second
    return _rule(
        rule,
        required,
        f"{_difference(comparison)}, mid-p {p:.3g}",
        high >= 0 and (value >= 0 or p >= alpha or not fewer),
        f"the candidate is worse than the champion at the {100 * comparison.confidence:g} % level",
    )


def _comparison_problem(
    spec: GateSpec,
    report: AccuracyReport | None,
    comparison: PairedComparison | None,
    opponent: str,
) -> str | None:
    """Why a paired comparison cannot be used, in plain words."""
    if report is None:
        return "the candidate was not assessed"
    if comparison is None:
        return f"the map was not compared with {opponent} at the same samples"
    if comparison.first != report.map_name:
        return (
            f"the comparison with {opponent} is of {comparison.first}, the report of "
            f"{report.map_name}; compare the candidate (first) with {opponent} (second)"
        )
    if comparison.reference_samples != report.reference_samples:
        return (
            f"the comparison with {opponent} is of {comparison.reference_samples} samples, the "
            f"report of {report.reference_samples}; assess both at the same samples"
        )
    if comparison.samples < spec.min_samples:
        return (
            f"only {comparison.samples} samples have a class in both the map and {opponent}; "
            f"{spec.min_samples} are needed"
        )
    return None


def _difference(comparison: PairedComparison) -> str:
    return f"{comparison.difference.percent()} points at {comparison.samples} samples"


def _rule(name: str, required: str, found: str, passed: bool, otherwise: str) -> RuleResult:
    return RuleResult(
        name=name,
        required=required,
        found=found,
        passed=passed,
        reason="holds" if passed else otherwise,
    )


def _refuse(name: str, required: str, found: str, reason: str) -> RuleResult:
    return _rule(name, required, found, False, reason)
