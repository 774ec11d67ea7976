"""A comparison as tables: Markdown and terminal for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from terrafine.accuracy import EDGE_PIXELS, AccuracyReport, Figure, PairedComparison
from terrafine.accuracy.report import markdown_table
from terrafine.comparison.held_out import PRODUCT
from terrafine.comparison.measure import Comparison, Row
from terrafine.spec import Region

_NOTHING = "-"
_WHERE: dict[Region, str] = {
    "validation": "that none of them was trained on",
    "all": "of the whole region, the ground of the training included",
}

Table = tuple[list[str], list[list[str]]]


def to_markdown(comparison: Comparison) -> str:
    """A section with both tables, what they rest on, and the errors of cells that failed."""
    parts = [
        f"## Comparison {comparison.name}",
        markdown_table(*_overall(comparison)),
        "Producer's / user's accuracy of each class, %:",
        markdown_table(*_classes(comparison)),
        _method(comparison),
    ]
    failed = [f"- {line}" for line in _errors(comparison)]
    if failed:
        parts.append("Not measured:\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


def to_rich(comparison: Comparison) -> RenderableType:
    """The same for a terminal, in fewer digits, so that it fits 80 columns."""
    return Group(
        _drawn(_short(comparison), f"Comparison {comparison.name}"),
        _drawn(_classes(comparison), "Producer's / user's accuracy of each class, %"),
        Text(_method(comparison), style="dim"),
        *(Text(line, style="red") for line in _errors(comparison)),
    )


def to_csv(comparison: Comparison) -> str:
    """One line per variant, the label product last; shares of 1, seconds, empty if undefined."""
    lines = [_csv_line(comparison, row) for row in comparison.rows]
    if comparison.product is not None:
        edges = _csv_edges(comparison.product_at_edges)
        seeds = {"pooled_seeds": _csv_pooled(comparison)}
        lines.append({"variant": PRODUCT, **seeds, **_csv_report(comparison.product), **edges})
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _overall(comparison: Comparison) -> Table:
    several = len(comparison.seeds) > 1
    header = [
        "variant",
        "overall accuracy, %",
        "beside edges, %",
        f"over {PRODUCT}, points",
        f"over {comparison.rows[0].variant}, points",
        *(["by seed, %"] if several else []),
        "training, s",
        "parameters",
        "MAC / pixel",
        *(["s / megapixel"] if _timed(comparison) else []),
    ]
    rows = [
        [
            row.variant,
            _percent(row.report, 2),
            _percent(row.at_edges, 2),
            _points(row.against_product, 2),
            _over_first(comparison, row, 2),
            *([_by_seed(comparison, row)] if several else []),
            _seconds(row),
            f"{row.network.parameters:,}",
            f"{row.network.macs_per_pixel:,}",
            *([_speed(row)] if _timed(comparison) else []),
        ]
        for row in comparison.rows
    ]
    return header, rows + _product_row(comparison, len(header), 2)


def _short(comparison: Comparison) -> Table:
    header = [
        "variant",
        "OA, %",
        "edges",
        "over product",
        f"over {comparison.rows[0].variant}",
        "s",
        "params",
        "MAC/px",
        *(["s/Mpx"] if _timed(comparison) else []),
    ]
    rows = [
        [
            row.variant,
            _percent(row.report, 1),
            _NOTHING if row.at_edges is None else _plain(row.at_edges.overall_accuracy),
            _points(row.against_product, 1),
            _over_first(comparison, row, 1),
            _NOTHING if row.train_seconds is None else f"{row.train_seconds:.0f}",
            f"{row.network.parameters / 1e6:.2f} M",
            f"{row.network.macs_per_pixel / 1e3:.0f} k",
            *([_speed(row)] if _timed(comparison) else []),
        ]
        for row in comparison.rows
    ]
    return header, rows + _product_row(comparison, len(header), 1)


def _timed(comparison: Comparison) -> bool:
    return any(row.seconds_per_megapixel is not None for row in comparison.rows)


def _speed(row: Row) -> str:
    seconds = row.seconds_per_megapixel
    return _NOTHING if seconds is None else f"{seconds:.3g}"


def _product_row(comparison: Comparison, width: int, digits: int) -> list[list[str]]:
    if comparison.product is None:
        return []
    edges = comparison.product_at_edges
    beside = _NOTHING if edges is None else _plain(edges.overall_accuracy)
    return [[PRODUCT, _percent(comparison.product, digits), beside, *([""] * (width - 3))]]


def _classes(comparison: Comparison) -> Table:
    """Classes that neither a map nor the reference has are left out."""
    named: list[tuple[str, AccuracyReport]] = [
        (row.variant, row.report) for row in comparison.rows if row.report is not None
    ]
    if comparison.product is not None:
        named.append((PRODUCT, comparison.product))
    shown = [
        k
        for k in range(len(named[0][1].classes) if named else 0)
        if any(r.classes[k].reference_samples or r.classes[k].mapped_samples for _, r in named)
    ]
    header = ["variant", *(named[0][1].classes[k].name for k in shown)]
    return header, [
        [
            variant,
            *(
                f"{_plain(report.classes[k].producers_accuracy)} / "
                f"{_plain(report.classes[k].users_accuracy)}"
                for k in shown
            ),
        ]
        for variant, report in named
    ]


def _drawn(table: Table, title: str) -> RichTable:
    header, rows = table
    drawn = RichTable(title=Text(title), title_justify="left", padding=(0, 1, 0, 0), box=SIMPLE)
    for place, name in enumerate(header):
        drawn.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def _method(comparison: Comparison) -> str:
    found = next((row.report for row in comparison.rows if row.report is not None), None)
    if found is None:
        return _why_nothing(comparison)
    several = len(comparison.seeds) > 1
    seeds = f"{_seeds(comparison)}; " if several else ""
    spread = ", as the differences of single seeds show" if several else ""
    return (
        f"{found.statement} Reference: {found.reference_name}; every variant on the same "
        f"{found.reference_samples} samples {_WHERE[comparison.region]}; {seeds}"
        f"{found.units} independent units; beside edges: within {EDGE_PIXELS} pixels. "
        f"{100 * found.confidence:g} % intervals, paired for differences, say what other "
        "ground would change; they do not hold how much another training of the same variant "
        f"would, which may be more{spread}. Each is for one comparison alone."
    )


def _why_nothing(comparison: Comparison) -> str:
    if not any(row.accuracy_by_seed for row in comparison.rows):
        return "No cell came to an end."
    return (
        "Nothing is pooled, since no seed was finished by all variants: without "
        f"{_left_out(comparison)}. Each seed is of other ground: compare figures of the same one, "
        "or mend what failed and run this again."
    )


def _seeds(comparison: Comparison) -> str:
    """Which of them the figures are of, and why others are not."""
    pooled = ", ".join(map(str, comparison.pooled_seeds))
    named = f"seeds {pooled} pooled" if len(comparison.pooled_seeds) > 1 else f"seed {pooled} alone"
    left_out = _left_out(comparison)
    return f"{named}, of every variant without {left_out}" if left_out else named


def _left_out(comparison: Comparison) -> str:
    measured = [row for row in comparison.rows if row.accuracy_by_seed]
    return " and ".join(
        f"seed {seed}, which {', '.join(r.variant for r in measured if seed in r.errors)} "
        "did not finish"
        for seed in comparison.seeds
        if seed not in comparison.pooled_seeds
    )


def _errors(comparison: Comparison) -> list[str]:
    return [
        f"{row.variant}, seed {seed}: {error}"
        for row in comparison.rows
        for seed, error in row.errors.items()
    ]


def _csv_line(comparison: Comparison, row: Row) -> dict[str, object]:
    return {
        "variant": row.variant,
        "seeds": " ".join(map(str, row.models)),
        "pooled_seeds": _csv_pooled(comparison) if row.report else "",
        "failed_seeds": " ".join(map(str, row.errors)),
        **(_csv_report(row.report) if row.report else {}),
        **_csv_edges(row.at_edges),
        **_csv_paired("over_product", row.against_product),
        **_csv_paired("over_first", row.against_first),
        "oa_by_seed": " ".join(f"{v:.6f}" for v in row.accuracy_by_seed.values() if v is not None),
        "over_first_by_seed": " ".join(
            f"{v:.6f}" for v in row.over_first_by_seed.values() if v is not None
        ),
        "train_seconds": row.train_seconds,
        "preliminary_seconds": row.preliminary_seconds,
        **row.network.model_dump(),
        "seconds_per_megapixel": row.seconds_per_megapixel,
    }


def _csv_pooled(comparison: Comparison) -> str:
    return " ".join(map(str, comparison.pooled_seeds))


def _csv_report(report: AccuracyReport) -> dict[str, object]:
    figures: dict[str, Figure] = {"oa": report.overall_accuracy, "mean_iou": report.mean_iou}
    for item in report.classes:
        figures[f"pa_{item.name}"] = item.producers_accuracy
        figures[f"ua_{item.name}"] = item.users_accuracy
    return {
        "samples": report.samples,
        "unmapped": report.unmapped,
        **{key: value for name, figure in figures.items() for key, value in _ends(name, figure)},
    }


def _csv_edges(report: AccuracyReport | None) -> dict[str, object]:
    return {} if report is None else dict(_ends("oa_at_edges", report.overall_accuracy))


def _csv_paired(name: str, found: PairedComparison | None) -> dict[str, object]:
    if found is None:
        return {}
    return {**dict(_ends(name, found.difference)), f"{name}_p": found.p_value}


def _ends(name: str, figure: Figure) -> Iterable[tuple[str, float | None]]:
    return (name, figure.value), (f"{name}_low", figure.low), (f"{name}_high", figure.high)


def _percent(report: AccuracyReport | None, digits: int) -> str:
    return _NOTHING if report is None else _interval(report.overall_accuracy, f".{digits}f")


def _plain(figure: Figure) -> str:
    return _NOTHING if figure.value is None else f"{100 * figure.value:.1f}"


def _points(found: PairedComparison | None, digits: int) -> str:
    return _NOTHING if found is None else _interval(found.difference, f"+.{digits}f")


def _over_first(comparison: Comparison, row: Row, digits: int) -> str:
    """The difference of all seeds together, and where there are others that of each."""
    together = _points(row.against_first, digits)
    each = {seed: v for seed, v in row.over_first_by_seed.items() if v is not None}
    if len(each) <= len(comparison.pooled_seeds[:1]):
        return together
    return f"{together}; by seed {_each(comparison, each, f'+.{digits}f')}"


def _interval(figure: Figure, form: str) -> str:
    ends = [
        None if v is None else f"{100 * v:{form}}" for v in (figure.value, figure.low, figure.high)
    ]
    value, low, high = ends
    if value is None:
        return "undefined"
    return value if low is None or high is None else f"{value} ({low} to {high})"


def _by_seed(comparison: Comparison, row: Row) -> str:
    return _each(comparison, row.accuracy_by_seed, ".2f") or _NOTHING


def _each(comparison: Comparison, by_seed: Mapping[int, float | None], form: str) -> str:
    """Figures of single seeds, which are named where variants finished different ones."""
    named = comparison.pooled_seeds != comparison.seeds
    return ", ".join(
        f"{seed}: {100 * value:{form}}" if named else f"{100 * value:{form}}"
        for seed, value in by_seed.items()
        if value is not None
    )


def _seconds(row: Row) -> str:
    if row.train_seconds is None or row.preliminary_seconds is None:
        return _NOTHING
    return f"{row.preliminary_seconds:.1f} + {row.train_seconds:.1f}"
