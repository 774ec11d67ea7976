"""One command per stage: ``terrafine label SPEC`` and so on."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from serving.engines import on_engines
from terrafine.cli.options import DataOption, JsonOption, SpecArgument, WorkdirOption
from terrafine.progress import figures
from terrafine.stages import ENGINE, Job, Manifest


def register(app: typer.Typer) -> None:
    """Add the stage commands to the command line."""
    for command in (label, train, filter_chips, prune, gate, export, adopt, publish):
        app.command(_NAMES.get(command.__name__, command.__name__))(command)


def label(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut imagery and label product into chips.

    Example: `terrafine label examples/zion.yaml --data ../shared/data/zion_l8_nlcd2011`
    """
    run_stage(Job.open(spec, data=data, workdir=workdir), "label", as_json)


def train(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    preliminary: Annotated[
        bool, typer.Option("--preliminary", help="the model that filters the labels")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the network; goes on where a killed training stopped.

    Example: `terrafine train SPEC --preliminary`, `terrafine filter SPEC`, `terrafine train SPEC`
    """
    stage = "train-preliminary" if preliminary else "train"
    run_stage(Job.open(spec, data=data, workdir=workdir), stage, as_json)


def filter_chips(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop the chips on which preliminary model and label product hardly agree."""
    run_stage(Job.open(spec, data=data, workdir=workdir), "filter", as_json)


def prune(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the trained network smaller as the spec's `prune` says; goes on where it was killed.

    Without a ratio there, the trained model is handed on as it is.

    Example: `prune: {ratio: 0.4, coupled: true, round_to: 8}` in SPEC, then `terrafine prune SPEC`
    """
    run_stage(Job.open(spec, data=data, workdir=workdir), "prune", as_json)


def gate(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Promote or refuse the model, with the reasons. Exit code 3 says refused."""
    job = Job.open(spec, data=data, workdir=workdir)
    done = run_stage(job, "gate", as_json)
    if not as_json:
        typer.echo(job.output(done, "verdict").read_text())
    if done.metrics["decision"] != "promote":
        raise typer.Exit(3)


def export(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the ONNX graph of a promoted model, checked against torch on real windows."""
    run_stage(Job.open(spec, data=data, workdir=workdir), "export", as_json)


def adopt(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over the released model that the spec names as `champion`, checked file by file."""
    run_stage(Job.open(spec, data=data, workdir=workdir), "adopt", as_json)


def publish(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Release the map: overviews, GeoTIFF, STAC item, quick look and report.

    Where the gate refused the model, only the report is made, and the exit code is 3.
    """
    job = Job.open(spec, data=data, workdir=workdir)
    gated = ENGINE.find(job, "gate") if job.spec.champion is None else None
    refused = gated is not None and gated.metrics["decision"] != "promote"
    run_stage(job, "refuse" if refused else "publish", as_json)
    if refused:
        raise typer.Exit(3)


_NAMES = {"filter_chips": "filter"}


def run_stage(job: Job, name: str, as_json: bool) -> Manifest:
    """Run one stage and print what it made."""
    before = ENGINE.find(job, name)
    done = ENGINE.run(on_engines(job), name)
    if as_json:
        typer.echo(done.model_dump_json(indent=2))
        return done
    console = Console()
    state = "was done before" if before else f"took {done.seconds:g} s"
    console.print(f"[bold]{name}[/] {state}: {figures(done.metrics)}")
    for key in done.outputs:
        console.print(f"  {key}: {job.output(done, key)}", soft_wrap=True, highlight=False)
    return done
