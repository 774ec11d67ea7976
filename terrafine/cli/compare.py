"""``terrafine compare``: a spec in several variants, measured on the same held-out samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.engines import on_engines
from terrafine.accuracy import Front
from terrafine.cli.options import DataOption, JsonOption, WorkdirOption
from terrafine.comparison import (
    Cell,
    Comparison,
    Plan,
    chart_png,
    front,
    front_png,
    measure,
    measure_speed,
    read_plan,
    run_cells,
    stages_done,
    to_csv,
    to_markdown,
    to_rich,
    with_speed,
)
from terrafine.spec import MapSpec, data_root
from terrafine.stages import Job, Manifest, open_reference
from terrafine.storage import Storage

FAILED = 1


def compare(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="comparison file, or a spec to vary"),
    ],
    data: DataOption = None,
    workdir: WorkdirOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say which cells would run, and stop")
    ] = False,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed", help="also time every variant's network, and draw accuracy against speed"
        ),
    ] = False,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="of a spec: vary what makes its network faster; implies --speed"
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train and assess a spec in several variants; cells that are done are not run again.

    FILE is a comparison (`base: spec.yaml`, `seeds: [0, 1]`, `variants: {name: {keys of the spec
    that it sets otherwise}}`, or `search: {axis: {name: {keys}}}` for every combination; the first
    variant is the one compared with), or an ordinary spec: then the networks, the norm, the
    impervious weight and the filter of Dong et al. 2020 are varied one at a time, with `--search`
    the stem strides and the pruning. Tables, JSON and a chart go to
    `WORKDIR/compare/<name of FILE>` (`<name>-search` with `--search`). A cell that fails is
    reported, the others go on, and the exit code is 1.

    `--speed` runs each variant's exported network on this machine, in turns, by the engine that
    the spec's map.predictor names. It says which is the fastest within 0.5 points of accuracy of
    the first (`within` of the file), draws front.png, and writes front.json for publish.front.

    Examples: `terrafine compare examples/zion.yaml --data ../shared/data/zion_l8_nlcd2011
    --dry-run`, `terrafine compare networks.yaml --json`, `terrafine compare my.yaml --search`
    """
    plan = read_plan(file, search=search)
    data_folder = data_root(plan.spec_file, data)
    place = (workdir or Path("runs") / plan.base.name).resolve()

    def open_job(spec: MapSpec) -> Job:
        return on_engines(Job(spec, data_folder, place))

    place.mkdir(parents=True, exist_ok=True)  # digests of large files are kept there
    if dry_run:
        _show_plan(plan, [(c, stages_done(open_job(c.spec))) for c in plan.cells], as_json)
        return
    open_reference(plan.base, data_folder)  # before hours of work
    outcomes = run_cells(plan, open_job, _Lines(Console(stderr=True, quiet=as_json)))
    comparison = measure(plan, outcomes)
    if speed or search:
        comparison = with_speed(comparison, measure_speed(outcomes))
    found = front(comparison, plan)
    folder = place / "compare" / plan.name
    _write(comparison, found, folder)
    if as_json:
        typer.echo(comparison.model_dump_json(indent=2))
    else:
        console = Console()
        console.print(to_rich(comparison))
        if found is not None:
            console.print(found.verdict())
        console.print(f"written: {folder}/comparison.{{md,csv,json,png}}", soft_wrap=True)
    if comparison.failed:
        raise typer.Exit(FAILED)


class _Lines:
    """A line for each cell and each of its stages; stages draw their own bars in between."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def cell(self, cell: Cell, number: int, total: int) -> None:
        """A cell begins."""
        self._console.print(f"[bold]\\[{number}/{total}] {escape(str(cell))}[/]")

    def stage(self, manifest: Manifest, *, was_done: bool) -> None:
        """A stage of it is done."""
        took = "done before" if was_done else f"{manifest.seconds:.1f} s"
        ends = [manifest.metrics.get(f"map_oa{end}") for end in ("", "_low", "_high")]
        shown = " ".join(f"{100 * float(end):.1f}" for end in ends if end is not None)
        of = f"  [dim]overall accuracy, %: {shown}[/]" if shown else ""
        self._console.print(f"[green]✓[/] {manifest.stage:<18} {took:>11}{of}")

    def failed(self, error: str) -> None:
        """The cell came to nothing."""
        self._console.print(f"[red]✗[/] {escape(error)}")


def _show_plan(plan: Plan, done: list[tuple[Cell, dict[str, bool]]], as_json: bool) -> None:
    if as_json:
        cells = [
            {"variant": cell.variant, "seed": cell.seed, "done": stages} for cell, stages in done
        ]
        typer.echo(json.dumps({"name": plan.name, "cells": cells}, indent=2))
        return
    table = Table("variant", "seed", "network", "to do", title=f"Comparison {plan.name}")
    for cell, stages in done:
        to_do = ", ".join(name for name, finished in stages.items() if not finished)
        table.add_row(cell.variant, str(cell.seed), cell.spec.model.arch, to_do or "done")
    Console().print(table)


def _write(comparison: Comparison, found: Front | None, folder: Path) -> None:
    storage = Storage.at(folder)
    verdict = f"\n{found.verdict()}\n" if found is not None else ""
    storage.write("comparison.md", (to_markdown(comparison) + verdict).encode())
    storage.write("comparison.csv", to_csv(comparison).encode())
    storage.write("comparison.json", comparison.model_dump_json(indent=2).encode())
    storage.write("comparison.png", chart_png(comparison))
    if found is not None:
        storage.write("front.json", found.model_dump_json(indent=2).encode())
        storage.write("front.png", front_png(found))
