"""``terrafine run``: the pipeline on this machine, and ``terrafine demo``: on a real scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from terrafine.cli.options import DataOption, JsonOption, SpecArgument, WorkdirOption
from terrafine.datasets import LICENCE_NOTICE, coarse_product, fetch
from terrafine.spec import load_spec
from terrafine.stages import ENGINE, Job, Manifest

REFUSED = 3
_DONE = {"publish": "released", "deploy": "a model that passed its gate"}


def run(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say which stages would run, and stop")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on this machine; stages that are done are not run again.

    Exit codes: 0 released, 3 refused by the gate, 1 error.

    Examples: `terrafine run examples/north-carolina.yaml --data demo/data`,
    `terrafine run examples/zion.yaml --data ../shared/data/zion_l8_nlcd2011 --dry-run`
    """
    job = Job.open(spec, data=data, workdir=workdir)
    if dry_run:
        _plan(job, as_json)
        return
    finish(job, _run(job, quiet=as_json), as_json)


def demo(
    into: Annotated[Path, typer.Option(help="folder for data and results")] = Path("demo"),
    spec: Annotated[Path, typer.Option(help="the North Carolina spec")] = Path(
        "examples/north-carolina.yaml"
    ),
) -> None:
    """Map a real Landsat scene of North Carolina end to end: data, training, map, report."""
    loaded = load_spec(spec)
    typer.echo(LICENCE_NOTICE)
    data = fetch(into / "data")
    product = data / loaded.label_product.file
    coarse_product(loaded.assessment.reference, data, product, seed=loaded.seed)
    job = Job.open(spec, data=data, workdir=into)
    finish(job, _run(job, quiet=False), as_json=False)


def _run(job: Job, *, quiet: bool) -> Manifest | None:
    """The release's manifest, or None where the gate refused."""
    if released(job):
        return ENGINE.run(job, "publish")
    # kfp takes a while to import, which other commands need not wait for
    from terrafine.cli.local_pipeline import run_pipeline
    from terrafine.cli.pipeline import pipeline_of

    run_pipeline(job, pipeline_of(job.spec.champion), quiet=quiet)
    return released(job)


def released(job: Job, stage: str = "publish") -> Manifest | None:
    """The manifest of a last stage, if the gate, as it stands now, promotes what it released.

    A champion passed its gate when it was released.
    """
    if job.spec.champion is None:
        gate = ENGINE.find(job, "gate")
        if gate is None or gate.metrics["decision"] != "promote":
            return None
    return ENGINE.find(job, stage)


def _plan(job: Job, as_json: bool) -> None:
    done = {name: ENGINE.find(job, name) is not None for name in ENGINE.names(job.spec)}
    if as_json:
        typer.echo(json.dumps({"workdir": str(job.workdir), "done": done}, indent=2))
        return
    table = Table("stage", "stands on", "", title=f"{job.spec.name} in {job.workdir}")
    for name, is_done in done.items():
        needs = ENGINE.stages[name].stands_on(job.spec)
        table.add_row(name, ", ".join(needs), "done" if is_done else "to do")
    Console().print(table)


def finish(job: Job, made: Manifest | None, as_json: bool) -> None:
    """Say what a pipeline left: ``made`` by its last stage, None where the gate refused."""
    last = made or ENGINE.find(job, "refuse")
    assert last is not None, "the pipeline ended without a report"
    if as_json:
        typer.echo(last.model_dump_json(indent=2))
    else:
        _last_screen(job, last)
    if made is None:
        raise typer.Exit(REFUSED)


def _last_screen(job: Job, last: Manifest) -> None:
    """What was made, where, and how good it is."""
    assessed = None if job.spec.champion else ENGINE.find(job, "assess")
    refused = last.stage == "refuse"
    made = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for title, key in (("report", "report"), ("map", "geotiff"), ("map store", "store")):
        if key in last.outputs:
            made.add_row(title, _short(_latest(job, last, key)))
    if "release" in last.metrics:
        made.add_row("release", str(last.metrics["release"]))
    if assessed is not None:
        m = assessed.metrics
        made.add_row("agreement", f"map with reference {_interval(m, 'map')}")
        made.add_row("", f"coarse product with reference {_interval(m, 'product')}")
        made.add_row("", f"map over coarse product {_interval(m, 'gain')} points, paired")
    title = "refused by the gate: nothing was mapped" if refused else _DONE[last.stage]
    panel = Panel(
        made, title=f"{job.spec.name}: {title}", border_style="red" if refused else "green"
    )
    console = Console()
    console.print(panel)
    gate = ENGINE.find(job, "gate") if refused else None
    if gate is not None:
        console.print(job.output(gate, "verdict").read_text(), markup=False)
    for note in job.spec.publish.notes:
        console.print(f"note: {note}", highlight=False)


def _interval(metrics: dict[str, float | int | str], key: str) -> str:
    sign, unit = ("+", "") if key == "gain" else ("", " %")
    ends = [metrics.get(f"{key}_oa{end}") for end in ("", "_low", "_high")]
    value, low, high = ("undefined" if v is None else f"{100 * float(v):{sign}.1f}" for v in ends)
    return f"{value}{unit} ({low} to {high})"


def _latest(job: Job, done: Manifest, name: str) -> Path:
    """Path of an output by the link that stays right after the next run."""
    path, folder = job.output(done, name), job.workdir / done.stage / done.digest[:12]
    return (
        folder.with_name("latest") / path.relative_to(folder)
        if path.is_relative_to(folder)
        else path
    )


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
