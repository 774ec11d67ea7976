"""The report: every figure reaches people and machines unchanged."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from terrafine.accuracy import (
    DONG_MAP_3M,
    AccuracyReport,
    ConfusionMatrix,
    Figure,
    Samples,
    assess,
    compare,
)
from terrafine.accuracy.estimate import PairedComparison
from terrafine.accuracy.report import markdown_table
from terrafine.legend import SEVEN, LandClass, Legend


def dong(kind: str = "points") -> AccuracyReport:
    samples = Samples.from_matrix(ConfusionMatrix(DONG_MAP_3M, SEVEN.codes))
    return assess(samples, SEVEN, map_name="3-m map", reference_name="points.gpkg", kind=kind)


def sparse() -> AccuracyReport:
    """Woodland is never mapped, five classes do not occur, two samples are unmapped."""
    mapped, reference = np.array([1, 1, 1, 0, 255]), np.array([1, 1, 2, 1, 2])
    samples = Samples(mapped.astype(np.uint8), reference.astype(np.uint8))
    return assess(samples, SEVEN, map_name="m", reference_name="r.tif", kind="raster")


def empty() -> AccuracyReport:
    return assess(
        Samples.concatenate([]), SEVEN, map_name="m", reference_name="r.tif", kind="raster"
    )


@pytest.mark.parametrize("report", [dong(), sparse(), empty()], ids=["dong", "sparse", "empty"])
def test_json_comes_back_as_the_same_report(report: AccuracyReport) -> None:
    text = report.model_dump_json()
    assert "NaN" not in text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert AccuracyReport.model_validate_json(text) == report


def test_undefined_figures_are_null() -> None:
    report = sparse()
    woodland = json.loads(report.model_dump_json())["classes"][1]
    assert woodland["users_accuracy"] == {"value": None, "low": None, "high": None}
    assert woodland["producers_accuracy"]["value"] == 0
    assert Figure(value=float("nan")).value is None
    assert Figure(value=np.float64("nan")).value is None
    assert "undefined" in report.to_markdown()
    assert "nan" not in report.to_markdown().lower().split()


def test_a_comparison_comes_back_as_the_same_comparison() -> None:
    one = np.array([1, 1, 2], np.uint8)
    found = compare(Samples(one, one, other=one), SEVEN.codes, first="a", second="b")
    assert PairedComparison.model_validate_json(found.model_dump_json()) == found


def test_markdown_shows_the_papers_table() -> None:
    text = dong().to_markdown()
    assert "| impervious | 8 | 1 | 2 | 4 | 150 | 2 | 0 | 167 | 89.82 |" in text
    assert (
        "| PA (%) | 83.93 | 89.47 | 73.60 | 86.60 | 78.53 | 95.76 | 30.00 |  | 86.34 (OA) |" in text
    )
    assert "| overall accuracy, % | 86.34 (" in text
    assert "| kappa | 0.828 (" in text
    assert "1000 resamples, 95 %, seed 0" in text


def test_both_means_are_shown_where_they_differ() -> None:
    mapped, reference = np.array([1, 4, 2], np.uint8), np.array([1, 1, 2], np.uint8)
    report = assess(
        Samples(mapped, reference), SEVEN, map_name="m", reference_name="r", kind="points"
    )
    assert "(classes in reference)" in report.to_markdown()
    assert "(classes in reference)" not in dong().to_markdown()


def test_the_terminal_shows_the_same_figures() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(dong().to_rich())
    text = console.export_text()
    for shown in ("86.34", "0.828", "68.72", "79.93", "impervious", "points.gpkg"):
        assert shown in text


def test_agreement_with_a_raster_is_not_called_truth() -> None:
    assert "itself a product, not truth" in dong("raster").to_markdown()
    assert "reference points" in dong("points").to_markdown()


def test_counts_of_samples() -> None:
    report = sparse()
    assert (report.samples, report.unmapped, report.reference_samples) == (3, 2, 5)
    assert report.unmapped_share == pytest.approx(0.4)
    cropland = report.class_named("cropland")
    assert cropland is not None
    assert (cropland.reference_samples, cropland.mapped_samples) == (2, 3)
    assert report.class_named("tundra") is None


def test_an_edited_report_is_refused() -> None:
    data = json.loads(dong().model_dump_json())
    data["overall_accuracy"]["value"] = 0.99
    with pytest.raises(ValidationError, match="assess again"):
        AccuracyReport.model_validate(data)
    data = json.loads(dong().model_dump_json())
    data["matrix"][0][0] += 1
    with pytest.raises(ValidationError, match="assess again"):
        AccuracyReport.model_validate(data)


def test_names_with_pipes_do_not_break_the_table() -> None:
    assert markdown_table(["a"], [["x|y\nz"]]) == "| a |\n| --- |\n| x\\|y z |"


def test_terminal_markup_in_names_is_shown_as_written() -> None:
    legend = Legend(
        name="own",
        classes=tuple(
            LandClass(code=i, name=n, color="#000000") for i, n in ((1, "[red]x[/red]"), (2, "b"))
        ),
    )
    one = np.array([1, 2], np.uint8)
    report = assess(Samples(one, one), legend, map_name="m", reference_name="r", kind="points")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.to_rich())
    assert "[red]x[/red]" in console.export_text()
