"""``terrafine compare`` on a small generated project: cells, tables, failures, resumption."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
import yaml
from typer.testing import CliRunner, Result

from terrafine.accuracy import Front
from terrafine.chips import ChipStore, open_chips
from terrafine.cli.main import app
from terrafine.comparison import (
    CellOutcome,
    Comparison,
    Plan,
    chart_png,
    measure,
    read_plan,
    to_csv,
    to_markdown,
    to_rich,
)
from terrafine.comparison import held_out as held_out_module
from terrafine.comparison.run import stages_of
from terrafine.errors import StageError
from terrafine.geometry import Window
from terrafine.raster import Mosaic, open_mosaics
from terrafine.spec import LabelSource, MapSpec
from terrafine.stages import ENGINE, Job, engine
from terrafine.stages.assess import assessed_windows
from terrafine.stages.held_out import HeldOutMap
from terrafine.stages.label import chips_place
from tests.scenes import CRS, TRANSFORM, Project, make_project

FAST = {
    "model": {"arch": "unet_w2", "first_norm": "batch"},
    "training": {"epochs": 2, "preliminary_epochs": 1, "crops_per_chip": 1},
    "filter": {"min_agreement": 0.0},
}
VARIANTS: dict[str, Any] = {
    "plain": {},
    "wide": {"model": {"arch": "unet_w4"}},
    "pruned": {"prune": {"ratio": 0.4, "epochs": 1, "fine_tune_epochs": 1}},
    "hopeless": {"filter": {"min_agreement": 1.0}},
    "other-split": {"chips": {"validation_fraction": 0.4}},
}
SEEDS = [0, 1]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks lose more to the hand-over between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Compared:
    project: Project
    file: Path
    result: Result

    @property
    def workdir(self) -> Path:
        return self.project.root / "run"

    @property
    def folder(self) -> Path:
        return self.workdir / "compare" / self.file.stem

    @property
    def found(self) -> Comparison:
        return Comparison.model_validate_json((self.folder / "comparison.json").read_text())


def compare(file: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["compare", str(file), "-w", str(file.parent / "run"), *options])


def comparison_file(project: Project, variants: dict[str, Any], seeds: list[int]) -> Path:
    project.change_spec(**FAST)
    file = project.root / "nets.yaml"
    keys = {"base": "spec.yaml", "seeds": seeds, "variants": variants}
    file.write_text(yaml.safe_dump(keys, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    project = make_project(tmp_path_factory.mktemp("compared"))
    file = comparison_file(project, VARIANTS, SEEDS)
    return Compared(project, file, compare(file))


def held_out(compared: Compared, variant: str, seed: int) -> tuple[HeldOutMap, list[Window], Job]:
    """A cell's map and validation chips, found without the comparison's own code."""
    spec = next(
        c.spec for c in read_plan(compared.file).cells if (c.variant, c.seed) == (variant, seed)
    )
    job = Job(spec, compared.project.root, compared.workdir)
    label, assessed = ENGINE.find(job, "label"), ENGINE.find(job, "assess")
    assert label is not None
    assert assessed is not None
    store = open_chips(chips_place(job, label))
    windows = [store.window(i) for i in store.indexes("validation").tolist()]
    return HeldOutMap(job.output(assessed, "held_out")), windows, job


def pixels_of(windows: list[Window]) -> set[tuple[int, int]]:
    return {
        (row, col)
        for w in windows
        for row in range(w.row, w.stop_row)
        for col in range(w.col, w.stop_col)
    }


def right_where(compared: Compared, variant: str, seed: int) -> dict[tuple[int, int], bool]:
    """Pixel -> whether the map is right there, for every pixel the cell held out."""
    held, windows, job = held_out(compared, variant, seed)
    (mosaic,) = open_mosaics(job.spec.imagery, job.data).values()
    origin = mosaic.window
    truth_HW = compared.project.truth_HW
    image_CHW = compared.project.image_CHW
    found = {}
    for window in windows:
        codes_HW = held.read(mosaic.zone, window)
        for row, col in pixels_of([window]):
            y, x = row - origin.row, col - origin.col
            if 0 <= y < 192 and 0 <= x < 192 and (image_CHW[:, y, x] != 0).all():
                code = codes_HW[row - window.row, col - window.col]
                found[row, col] = bool(code == truth_HW[y, x])
    return found


def test_a_cell_that_fails_is_reported_and_the_others_go_on(compared: Compared) -> None:
    assert compared.result.exit_code == 1
    rows = {row.variant: row for row in compared.found.rows}
    assert list(rows) == list(VARIANTS)
    assert set(rows["hopeless"].errors) == set(SEEDS)
    assert "no chip" in rows["hopeless"].errors[0]
    assert rows["hopeless"].report is None
    assert all(not rows[name].errors for name in rows if name != "hopeless")
    assert all(set(rows[n].models) == set(SEEDS) for n in rows if n != "hopeless")
    assert compared.found.pooled_seeds == (0, 1), "no seed of it was finished"
    assert "hopeless, seed 1: " in (compared.folder / "comparison.md").read_text()


def test_every_variant_answers_for_the_same_held_out_samples(compared: Compared) -> None:
    """A pixel counts where no cell of its seed was trained, also where a variant splits otherwise;
    accuracy and paired differences are those counted pixel by pixel."""
    names = [name for name in VARIANTS if name != "hopeless"]
    right: dict[str, list[bool]] = {name: [] for name in names}
    for seed in SEEDS:
        cells = {name: right_where(compared, name, seed) for name in names}
        common = sorted(set.intersection(*(set(cell) for cell in cells.values())))
        assert 0 < len(common) < max(len(cell) for cell in cells.values())
        for name in names:
            right[name] += [cells[name][pixel] for pixel in common]
    rows = {row.variant: row for row in compared.found.rows}
    for name in names:
        report, paired = rows[name].report, rows[name].against_first
        assert report is not None
        assert report.samples == len(right[name])
        assert report.overall_accuracy.value == pytest.approx(np.mean(right[name]))
        if name != "plain":
            assert paired is not None
            difference = np.mean(right[name]) - np.mean(right["plain"])
            assert paired.difference.value == pytest.approx(difference)
            low, high = paired.difference.low, paired.difference.high
            assert low is not None
            assert high is not None
            assert low <= difference <= high
    wide, plain = rows["wide"], rows["plain"]
    assert wide.over_first_by_seed.keys() == set(SEEDS)
    for seed, difference in wide.over_first_by_seed.items():
        own, other = wide.accuracy_by_seed[seed], plain.accuracy_by_seed[seed]
        assert own is not None
        assert other is not None
        assert difference == pytest.approx(own - other)
    assert rows["plain"].against_first is None
    assert rows["plain"].accuracy_by_seed.keys() == set(SEEDS)


def test_two_seeds_on_one_block_are_one_independent_unit(compared: Compared) -> None:
    report = compared.found.rows[0].report
    assert report is not None
    unit = 16
    blocks = set()
    for seed in SEEDS:
        cells = [right_where(compared, name, seed) for name in VARIANTS if name != "hopeless"]
        common = set.intersection(*(set(cell) for cell in cells))
        blocks |= {(row // unit, col // unit) for row, col in common}
    assert report.units == len(blocks)


def test_tables_say_what_the_json_says(compared: Compared) -> None:
    found = compared.found
    lines = {
        line["variant"]: line
        for line in csv.DictReader(io.StringIO((compared.folder / "comparison.csv").read_text()))
    }
    assert list(lines) == [*VARIANTS, "label product"]
    for row in found.rows:
        line = lines[row.variant]
        assert int(line["parameters"]) == row.network.parameters
        if row.report is not None:
            assert float(line["oa"]) == row.report.overall_accuracy.value
            water = row.report.class_named("water")
            assert water is not None
            assert float(line["pa_water"]) == water.producers_accuracy.value
    markdown = (compared.folder / "comparison.md").read_text()
    assert found.product is not None
    assert found.product.overall_accuracy.percent() in markdown
    assert found.product.samples == found.rows[0].report.samples  # type: ignore[union-attr]
    assert "bare land" not in markdown, "neither any map nor the reference has it"
    png = (compared.folder / "comparison.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert "label product" in compared.result.output


def test_tables_say_what_their_figures_rest_on(compared: Compared) -> None:
    found = compared.found
    markdown = " ".join(to_markdown(found).split())
    assert "samples that none of them was trained on" in markdown
    assert "not hold how much another training of the same variant would" in markdown
    wide = next(row for row in found.rows if row.variant == "wide")
    each = ", ".join(f"{100 * v:+.2f}" for v in wide.over_first_by_seed.values() if v is not None)
    assert f"; by seed {each} |" in markdown
    anywhere = to_markdown(found.model_copy(update={"region": "all"}))
    assert "trained on" not in anywhere
    assert "the ground of the training included" in anywhere


def outcomes_of(compared: Compared) -> tuple[Plan, list[CellOutcome]]:
    """The plan, and its finished cells, of which nothing is run again."""
    plan = read_plan(compared.file)
    jobs = [(cell, Job(cell.spec, compared.project.root, compared.workdir)) for cell in plan.cells]
    found = [
        CellOutcome(cell, job, {name: ENGINE.find(job, name) for name in stages_of(job)})
        for cell, job in jobs
        if cell.variant != "hopeless"
    ]
    return plan, found


def lost(compared: Compared, *cells: tuple[str, int]) -> tuple[Plan, list[CellOutcome]]:
    """What :func:`outcomes_of` has, but these cells were out of memory."""
    plan, outcomes = outcomes_of(compared)
    plan = replace(plan, cells=tuple(c for c in plan.cells if c.variant != "hopeless"))
    return plan, [
        replace(o, error="out of memory") if (o.cell.variant, o.cell.seed) in cells else o
        for o in outcomes
    ]


@pytest.mark.parametrize("failed", ["plain", "wide"])
def test_a_seed_that_a_variant_did_not_finish_is_pooled_for_none(
    compared: Compared, failed: str
) -> None:
    """Its ground may be harder, and those who finished it would answer for that alone."""
    plan, outcomes = lost(compared, (failed, 1))
    found = measure(plan, outcomes)
    one = replace(plan, cells=tuple(c for c in plan.cells if c.seed == 0))
    expected = measure(one, [o for o in outcomes if o.cell.seed == 0])
    assert found.failed
    assert (found.pooled_seeds, expected.pooled_seeds) == ((0,), (0,))
    assert found.product == expected.product
    assert found.product_at_edges == expected.product_at_edges
    for row, alone in zip(found.rows, expected.rows, strict=True):
        for figures in ("report", "at_edges", "against_product", "against_first"):
            assert getattr(row, figures) == getattr(alone, figures)
        seeds = [0] if row.variant == failed else SEEDS
        assert list(row.accuracy_by_seed) == seeds
    text = " ".join(to_markdown(found).split())
    assert f"seed 0 alone, of every variant without seed 1, which {failed} did not finish" in text
    other = next(row for row in found.rows if row.variant == "pruned").accuracy_by_seed
    assert f"| 0: {100 * (other[0] or 0):.2f}, 1: {100 * (other[1] or 0):.2f} |" in text
    lines = csv.DictReader(io.StringIO(to_csv(found)))
    assert {line["pooled_seeds"] for line in lines} == {"0"}


def test_without_a_seed_in_common_only_single_seeds_have_figures(compared: Compared) -> None:
    found = measure(*lost(compared, ("plain", 0), ("wide", 1)))
    assert found.pooled_seeds == ()
    assert found.product is None
    for row in found.rows:
        assert (row.report, row.at_edges, row.against_product) == (None, None, None)
        assert row.against_first is None
        assert row.accuracy_by_seed
    text = " ".join(to_markdown(found).split())
    assert "seed 0, which plain did not finish and seed 1, which wide did not finish" in text
    pruned = next(row for row in found.rows if row.variant == "pruned")
    (seed, over), *others = pruned.over_first_by_seed.items()
    assert (seed, others) == (1, [])
    assert f"| -; by seed 1: {100 * (over or 0):+.2f} |" in text
    assert chart_png(found)
    assert to_rich(found)


def test_a_training_costs_all_its_epochs_whenever_it_last_went_on(compared: Compared) -> None:
    plan, outcomes = lost(compared)
    resumed = [
        replace(o, stages={n: m.model_copy(update={"seconds": 0.01}) for n, m in o.stages.items()})
        for o in outcomes
    ]
    spent: dict[str, list[float]] = {}
    for outcome in outcomes:
        history = json.loads(outcome.job.output(outcome.stages["train"], "history").read_text())
        if outcome.cell.variant == "pruned":
            pruning = outcome.job.output(outcome.stages["prune"], "history").read_text()
            phases = json.loads(pruning)
            assert [len(phases[name]) for name in ("zeroed", "compact")] == [1, 1]
            history += phases["zeroed"] + phases["compact"]
        seconds = sum(epoch["seconds"] for epoch in history)
        spent.setdefault(outcome.cell.variant, []).append(seconds)
    for row in measure(plan, resumed).rows:
        assert row.train_seconds == pytest.approx(np.mean(spent[row.variant]))
        assert row.preliminary_seconds is not None
        assert row.preliminary_seconds > 0.01


def test_the_label_product_is_the_bases_whatever_the_first_cell_learned_from(
    compared: Compared,
) -> None:
    plan, (first, *others) = outcomes_of(compared)
    truth = LabelSource(file="reference.tif", crosswalk="seven")
    oracle = first.cell.spec.model_copy(update={"labels": truth})
    plan = replace(plan, cells=tuple(c for c in plan.cells if c.variant != "hopeless"))
    found = measure(plan, [replace(first, job=replace(first.job, spec=oracle)), *others])
    product = compared.found.product
    assert found.product is not None
    assert product is not None
    assert found.product.overall_accuracy.value == product.overall_accuracy.value < 0.95


def test_a_variant_assessed_elsewhere_is_reported_and_the_others_are_compared(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, outcomes = outcomes_of(compared)
    plan = replace(plan, cells=tuple(c for c in plan.cells if c.variant != "hopeless"))

    def elsewhere(spec: MapSpec, store: ChipStore, mosaic: Mosaic) -> list[Window]:
        other = spec.chips.validation_fraction == 0.4
        return [Window(0, 0, 32, 32)] if other else assessed_windows(spec, store, mosaic)

    monkeypatch.setattr(held_out_module, "assessed_windows", elsewhere)
    found = measure(plan, outcomes)
    rows = {row.variant: row for row in found.rows}
    assert rows["other-split"].report is None
    assert set(rows["other-split"].errors) == set(SEEDS)
    assert "no place where it was assessed is one where plain" in rows["other-split"].errors[0]
    assert found.failed
    for name in ("plain", "wide", "pruned"):
        assert rows[name].report is not None
        assert not rows[name].errors
    assert "other-split, seed 0: no place" in to_markdown(found)


def test_a_pruned_variant_is_measured_as_what_is_left_of_it(compared: Compared) -> None:
    rows = {row.variant: row for row in compared.found.rows}
    plain, pruned = rows["plain"].network, rows["pruned"].network
    assert pruned.arch == plain.arch
    assert pruned.parameters < 0.7 * plain.parameters
    assert pruned.macs_per_pixel < 0.7 * plain.macs_per_pixel
    assert pruned.receptive_field == plain.receptive_field
    assert rows["pruned"].models[0] != rows["plain"].models[0]


def test_what_is_done_is_not_done_again(compared: Compared) -> None:
    before = (compared.folder / "comparison.json").read_bytes()
    manifests = {p: p.stat().st_mtime_ns for p in compared.workdir.rglob("manifest.json")}
    # shared stages ran once: two splits of two seeds, four variants
    assert len([p for p in manifests if p.parts[-3] == "label"]) == 4
    dry = json.loads(compare(compared.file, "--dry-run", "--json").stdout)
    to_do = {c["variant"] for c in dry["cells"] if not all(c["done"].values())}
    assert to_do == {"hopeless"}
    again = compare(compared.file, "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout) == json.loads(before)
    assert manifests == {p: p.stat().st_mtime_ns for p in compared.workdir.rglob("manifest.json")}


def test_imagery_is_read_once_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path)
    file = comparison_file(project, VARIANTS, SEEDS)
    read: list[Path] = []
    digest = engine.file_digest
    monkeypatch.setattr(engine, "file_digest", lambda path: (read.append(path), digest(path))[1])
    assert compare(file, "--dry-run").exit_code == 0
    assert len(read) == len(set(read)) > 1


@pytest.mark.slow
def test_points_are_compared_too_and_count_once_over_the_seeds(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(8, 190, (2, 60))
    x, y = rasterio.transform.xy(TRANSFORM, rows, cols)
    geopandas.GeoDataFrame(
        {"class": project.truth_HW[rows, cols].astype(int)},
        geometry=geopandas.points_from_xy(x, y), crs=CRS,
    ).to_file(tmp_path / "points.gpkg")  # fmt: skip
    project.change_spec(
        assess={"reference": {"file": "points.gpkg", "crosswalk": "seven", "region": "all"}}
    )
    file = comparison_file(project, {"plain": {}, "wide": {"model": {"arch": "unet_w4"}}}, SEEDS)
    compared = Compared(project, file, compare(file))
    assert compared.result.exit_code == 0
    found = compared.found
    for row in found.rows:
        assert row.report is not None
        assert (row.report.samples, row.report.units) == (120, 60)


def test_a_damaged_held_out_map_is_named(compared: Compared, tmp_path: Path) -> None:
    path = next(compared.workdir.glob("assess/*/held_out.zip"))
    copy = tmp_path / "held_out.zip"
    copy.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(StageError, match=r"held_out\.zip: cannot be read back"):
        HeldOutMap(copy)
    with pytest.raises(StageError, match="holds nothing of"):
        HeldOutMap(path).read("epsg32650", Window(0, 0, 4, 4))


@pytest.mark.slow
def test_speed_is_measured_on_the_graph_that_would_be_served(compared: Compared) -> None:
    file = compared.file.with_name("speed.yaml")
    keys = {"base": "spec.yaml", "seeds": [0], "variants": {"plain": {}, "wide": VARIANTS["wide"]}}
    file.write_text(yaml.safe_dump(keys, sort_keys=False))
    result = compare(file, "--speed", "--json")
    assert result.exit_code == 0, result.output
    plain, wide = Comparison.model_validate_json(result.stdout).rows
    # which is faster is the machine's affair: a timing never sits in a test
    for row in (plain, wide):
        assert row.seconds_per_megapixel is not None
        assert row.seconds_per_megapixel > 0
    folder = compared.workdir / "compare" / "speed"
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "s / megapixel" in (folder / "comparison.md").read_text()
    found = Front.model_validate_json((folder / "front.json").read_bytes())
    assert [(p.network, p.engine) for p in found.places] == [("plain", "onnx"), ("wide", "onnx")]
    assert found.verdict() in (folder / "comparison.md").read_text()
    assert found.of(next(iter(plain.models.values()))) == found.places[0]
