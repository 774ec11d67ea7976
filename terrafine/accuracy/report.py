"""AccuracyReport: what an assessment found, for people (Markdown, terminal) and machines (JSON)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from terrafine.accuracy.confusion import ConfusionMatrix
from terrafine.accuracy.estimate import Estimate, Figure, estimate
from terrafine.accuracy.samples import Samples
from terrafine.legend import Legend

ReferenceKind = Literal["points", "raster"]

# What the figures are, which depends on what they were measured against.
STATEMENTS: dict[ReferenceKind, str] = {
    "points": "Accuracy at reference points.",
    "raster": "Agreement with a reference raster that is itself a product, not truth: where the "
    "two differ, either may be wrong.",
}


class Frozen(BaseModel):
    """Base of everything a report is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassAccuracy(Frozen):
    """One class: how often it was mapped and found."""

    name: str
    code: int
    reference_samples: int
    mapped_samples: int
    users_accuracy: Figure
    producers_accuracy: Figure
    f1: Figure
    iou: Figure


class AccuracyReport(Frozen):
    """Everything an assessment found about one map against one reference.

    ``samples`` are those in ``matrix`` (rows mapped, columns reference, order of ``classes``);
    ``unmapped`` more have a reference class but none in the map. Means run over the classes that
    occur in map or reference; those ``..._of_reference_classes`` over those in the reference.
    """

    map_name: str
    reference_name: str
    kind: ReferenceKind
    statement: str
    legend: str
    legend_digest: str
    samples: int = Field(ge=0)
    unmapped: int = Field(ge=0)
    units: int = Field(ge=0)
    resamples: int
    confidence: float
    seed: int
    method: str
    matrix: tuple[tuple[int, ...], ...]
    overall_accuracy: Figure
    kappa: Figure
    mean_users_accuracy: Figure
    mean_producers_accuracy: Figure
    mean_f1: Figure
    mean_iou: Figure
    mean_users_accuracy_of_reference_classes: Figure
    mean_producers_accuracy_of_reference_classes: Figure
    mean_f1_of_reference_classes: Figure
    mean_iou_of_reference_classes: Figure
    classes: tuple[ClassAccuracy, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse a report whose figures are not those of its matrix: a gate relies on them."""
        matrix = self.confusion()
        stated = self.overall_accuracy.value
        found = matrix.overall_accuracy
        same = math.isnan(found) if stated is None else math.isclose(found, stated, abs_tol=1e-9)
        if matrix.total != self.samples or not same:
            raise ValueError(
                f"accuracy report of {self.map_name}: its matrix holds {matrix.total} samples with "
                f"overall accuracy {found:.4f}, the report states {self.samples} and {stated}; "
                "assess again"
            )
        return self

    @property
    def reference_samples(self) -> int:
        """Samples with a reference class, unmapped ones included."""
        return self.samples + self.unmapped

    @property
    def unmapped_share(self) -> float:
        """Share of the reference samples without a class in the map; NaN without samples."""
        return self.unmapped / self.reference_samples if self.reference_samples else math.nan

    def confusion(self) -> ConfusionMatrix:
        """The matrix as an object."""
        size = len(self.classes)
        counts = np.array([list(row) for row in self.matrix], np.int64)
        return ConfusionMatrix(counts.reshape(-1, size), tuple(c.code for c in self.classes))

    def class_named(self, name: str) -> ClassAccuracy | None:
        """The row of a class, or None when the legend has no such class."""
        return next((row for row in self.classes if row.name == name), None)

    def to_markdown(self) -> str:
        """The report as a Markdown section."""
        parts = [
            f"## Accuracy of {self.map_name}",
            f"{self.statement} {self._scope()}",
            markdown_table(*self._overall()),
            markdown_table(*self._per_class()),
            "Confusion matrix: rows as mapped, columns as in the reference.",
            markdown_table(*self._matrix()),
            self.method,
        ]
        return "\n\n".join(parts) + "\n"

    def to_rich(self) -> RenderableType:
        """The report for a terminal."""
        title = f"Accuracy of {self.map_name}"
        return Group(
            Text(f"{self.statement} {self._scope()}"),
            rich_table(*self._overall(), title=title),
            rich_table(*self._per_class(), title="Classes (%)"),
            rich_table(*self._matrix(), title="Confusion matrix: rows mapped, columns reference"),
            Text(self.method, style="dim"),
        )

    def _scope(self) -> str:
        return (
            f"Reference: {self.reference_name}. {self.samples} samples; {self.unmapped} more have "
            f"no class in the map and are in no figure. Legend: {self.legend}."
        )

    def _overall(self) -> tuple[list[str], list[list[str]]]:
        header = ["figure", f"value ({100 * self.confidence:g} % interval)"]
        occurring = [
            ["mean F1, %", self.mean_f1.percent()],
            ["mean IoU, %", self.mean_iou.percent()],
            ["mean user's accuracy, %", self.mean_users_accuracy.percent()],
            ["mean producer's accuracy, %", self.mean_producers_accuracy.percent()],
        ]
        reference = [
            ["mean F1, %", self.mean_f1_of_reference_classes.percent()],
            ["mean IoU, %", self.mean_iou_of_reference_classes.percent()],
            ["mean user's accuracy, %", self.mean_users_accuracy_of_reference_classes.percent()],
            [
                "mean producer's accuracy, %",
                self.mean_producers_accuracy_of_reference_classes.percent(),
            ],
        ]
        # Where every mapped class also occurs in the reference the two denominators are one.
        if reference == occurring:
            reference = []
        return header, [
            ["overall accuracy, %", self.overall_accuracy.percent()],
            ["kappa", self.kappa.plain()],
            *([f"{name} (classes in map or reference)", value] for name, value in occurring),
            *([f"{name} (classes in reference)", value] for name, value in reference),
        ]

    def _per_class(self) -> tuple[list[str], list[list[str]]]:
        header = ["class", "reference", "mapped", "user's acc.", "producer's acc.", "F1", "IoU"]
        rows = [
            [
                row.name,
                str(row.reference_samples),
                str(row.mapped_samples),
                row.users_accuracy.percent(),
                row.producers_accuracy.percent(),
                row.f1.percent(),
                row.iou.percent(),
            ]
            for row in self.classes
        ]
        return header, rows

    def _matrix(self) -> tuple[list[str], list[list[str]]]:
        """Laid out as Tables 2 and 3 of Dong et al. 2020."""
        header = ["mapped", *(row.name for row in self.classes), "SUM", "UA (%)"]
        rows = [
            [row.name, *map(str, counts), str(sum(counts)), _percent(row.users_accuracy.value)]
            for row, counts in zip(self.classes, self.matrix, strict=True)
        ]
        totals = [str(row.reference_samples) for row in self.classes]
        found = [_percent(row.producers_accuracy.value) for row in self.classes]
        rows.append(["SUM", *totals, str(self.samples), ""])
        rows.append(["PA (%)", *found, "", f"{_percent(self.overall_accuracy.value)} (OA)"])
        return header, rows


def assess(
    samples: Samples,
    legend: Legend,
    *,
    map_name: str,
    reference_name: str,
    kind: ReferenceKind,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> AccuracyReport:
    """The report of ``samples.mapped``. Without any sample every figure is undefined (None)."""
    found = estimate(samples, legend.codes, resamples=resamples, confidence=confidence, seed=seed)
    return AccuracyReport(
        map_name=map_name,
        reference_name=reference_name,
        kind=kind,
        statement=STATEMENTS[kind],
        legend=legend.name,
        legend_digest=legend.digest,
        samples=found.matrix.total,
        unmapped=found.unmapped,
        units=found.units,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        method=_method(found, resamples, confidence, seed),
        matrix=tuple(tuple(int(n) for n in row) for row in found.matrix.counts),
        classes=_classes(found, legend),
        **found.figures,
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; pipes and line breaks inside cells are kept out of its grammar."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *(line(row) for row in rows)])


def rich_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, title: str) -> Table:
    """The same table for a terminal; numbers to the right."""
    table = Table(title=Text(title), title_justify="left")
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _classes(found: Estimate, legend: Legend) -> tuple[ClassAccuracy, ...]:
    return tuple(
        ClassAccuracy(
            name=item.name,
            code=item.code,
            reference_samples=int(found.matrix.reference_totals[k]),
            mapped_samples=int(found.matrix.mapped_totals[k]),
            **{name: figures[k] for name, figures in found.class_figures.items()},
        )
        for k, item in enumerate(legend.classes)
    )


def _method(found: Estimate, resamples: int, confidence: float, seed: int) -> str:
    if found.units < 2:
        return f"No intervals: {found.units} independent unit(s), and a bootstrap needs two."
    units = (
        "each sample a unit of its own"
        if found.units == found.matrix.total
        else f"{found.matrix.total} samples in {found.units} blocks, drawn whole because "
        "neighbouring pixels are not independent"
    )
    return (
        f"Intervals: expanded percentile bootstrap, {resamples} resamples, "
        f"{100 * confidence:g} %, seed {seed}; {units}. A share of exactly 0 or 1 has "
        "the exact binomial bound instead. "
        "Undefined figures (a class never mapped, or absent from the reference) are left out "
        "of the means."
    )


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.2f}"
