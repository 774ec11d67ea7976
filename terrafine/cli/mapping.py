"""``terrafine map``: the mapping of a spec's scenes, and what it would take."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from serving.engines import on_engines
from terrafine.cli import map_state, map_store
from terrafine.cli.options import DataOption, JsonOption, SpecArgument, WorkdirOption
from terrafine.cli.stages import run_stage
from terrafine.errors import StageError
from terrafine.mapping import Estimate, Plan, Resources, estimate, plan_all
from terrafine.models import describe_spec
from terrafine.progress import EVENTS_VARIABLE
from terrafine.publish.geography import pixel_area_km2
from terrafine.raster import Mosaic, Region, open_mosaics
from terrafine.spec import MapSpec
from terrafine.stages import ENGINE, Job
from terrafine.stages.map import map_place, map_region, require_begun
from terrafine.stages.update import update_map

# What is assumed of a machine that nobody has measured, in floating point operations per second:
# a third of an H100's limit for this network (docs/catalogue.md), and a core with onnxruntime.
_GPU_FLOPS = 150e12
_CORE_FLOPS = 0.14e12
_READ_MB = 250.0


class _RunByDefault(TyperGroup):
    """``terrafine map SPEC`` is ``terrafine map run SPEC``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, ["run", *args] if args and args[0] not in known else args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Map the scenes (`terrafine map SPEC`), or say what that would take.",
)

map_store.register(app)
map_state.register(app)


ProgressOption = Annotated[
    bool, typer.Option("--json-progress", help="print each step as a line of JSON")
]


@app.command()
def run(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
    json_progress: ProgressOption = False,
) -> None:
    """Map every scene into the map store; goes on where a killed run stopped.

    `terrafine map SPEC` says the same. A spec that names a `champion` is mapped with that model.
    """
    if json_progress:
        os.environ[EVENTS_VARIABLE] = "/dev/stderr"
    job = Job.open(spec, data=data, workdir=workdir)
    if job.spec.champion is not None:
        ENGINE.run(job, "adopt")
    run_stage(job, "map", as_json)


@app.command()
def resume(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    base: Annotated[
        str | None, typer.Option(help="go on with the update of this map release to SPEC")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="of that update: as `terrafine map update` takes it")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="of that update, too")] = None,
    as_json: JsonOption = False,
    json_progress: ProgressOption = False,
) -> None:
    """Go on with a map that was begun; an error where there is none, or where it is finished.

    For scripts that must not begin one: `terrafine map run` and `terrafine map update` resume too.
    """
    if base is not None:
        if json_progress:
            os.environ[EVENTS_VARIABLE] = "/dev/stderr"
        job = on_engines(Job.open(spec, data=data, workdir=workdir))
        updated = update_map(job, base, model=model, bundle=bundle, begun=True)
        map_store.show_update(updated, as_json=as_json)
        return
    job = Job.open(spec, data=data, workdir=workdir)
    if ENGINE.find(job, "map") is not None:
        raise StageError(f"{map_place(job)}: the map of this spec is finished; nothing to resume")
    before = [ENGINE.find(job, name) for name in ENGINE.stages["map"].stands_on(job.spec)]
    done = {manifest.stage: manifest for manifest in before if manifest is not None}
    if len(done) < len(before):
        raise StageError(
            f"{job.workdir}: nothing to resume: the stages before the map are not done for this "
            "spec; begin with `terrafine run SPEC`"
        )
    require_begun(job, done)
    run(spec, data, workdir, as_json, json_progress)


@app.command()
def plan(
    spec: SpecArgument,
    data: DataOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="cores that read and write; default: this machine's")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="that infer; 0: the workers do")] = 0,
    mpixel_per_second: Annotated[
        float | None,
        typer.Option(min=1e-9, help="inferred by a GPU (or worker); default: from the network"),
    ] = None,
    read_mb_per_second: Annotated[
        float, typer.Option(min=1e-9, help="uint16 pixels that a worker reads and decompresses")
    ] = _READ_MB,
    price_worker: Annotated[float, typer.Option(min=0, help="of a worker for an hour")] = 0.0,
    price_gpu: Annotated[float, typer.Option(min=0, help="of a GPU for an hour")] = 0.0,
    png: Annotated[
        Path | None, typer.Option(help="draw the shards over the scenes into this file")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Shards, pixels, bytes, windows, hours and cost of a map, without reading a scene.

    Example: `terrafine map plan SPEC --workers 64 --gpus 8 --price-worker 0.05 --price-gpu 2.5
    --png plan.png`
    """
    job = Job.open(spec, data=data, workdir=None)
    region = map_region(job)
    mosaics = open_mosaics(job.spec.imagery, job.data)
    plans = [plan for plan in plan_all(mosaics, job.spec.map, region) if plan.zone in mosaics]
    flops = _flops_per_pixel(job.spec)
    resources = Resources(
        workers=workers or os.cpu_count() or 1,
        gpus=gpus,
        mpixel_per_second=mpixel_per_second or (_GPU_FLOPS if gpus else _CORE_FLOPS) / flops / 1e6,
        read_mb_per_second=read_mb_per_second,
        price_worker_hour=price_worker,
        price_gpu_hour=price_gpu,
    )
    found = estimate(
        plans,
        mosaics,
        job.spec.map,
        resources,
        legend=job.spec.resolve_legend(),
        pixel_km2={p.zone: pixel_area_km2(p.grid, p.extent) for p in plans},
    )
    if as_json:
        shown = {"name": job.spec.name, "flops_per_pixel": flops, **found.model_dump()}
        typer.echo(json.dumps(shown, indent=1))
    else:
        _show(job.spec, found, flops, measured=mpixel_per_second is not None)
    if png is not None:
        _draw(png, job.spec, plans, mosaics, region)
        if not as_json:
            typer.echo(f"picture {png}")


def _flops_per_pixel(spec: MapSpec) -> float:
    classes = len(spec.resolve_legend().classes)
    network = describe_spec(spec.model, bands=len(spec.imagery.bands), classes=classes)
    return 2 * float(network["macs_per_pixel"])


def _draw(
    path: Path, spec: MapSpec, plans: list[Plan], mosaics: dict[str, Mosaic], region: Region | None
) -> None:
    from terrafine.mapping.plan_picture import draw_plan  # loads matplotlib

    shards = sum(len(plan.touched) for plan in plans)
    title = f"{spec.name}: {shards} shards of {spec.map.shard} pixels"
    draw_plan(path, plans, mosaics, title=title, region=region)


def _show(spec: MapSpec, found: Estimate, flops: float, *, measured: bool) -> None:
    columns = ("zone", "scenes", "shards", "km²", "Mpixel", "GB", "windows", "GB in windows")
    table = Table(title=f"{spec.name}: what the map takes", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for zone in (*found.zones, found.total):
        table.add_row(
            zone.zone,
            *(f"{n:,}" for n in (zone.scenes, zone.shards)),
            *(f"{v:,.0f}" for v in (zone.area_km2, zone.pixels / 1e6)),
            f"{zone.bytes / 1e9:,.1f}",
            f"{zone.windows:,}",
            f"{zone.window_bytes / 1e9:,.1f}",
            style="bold" if zone is found.total else None,
        )
    Console().print(table)
    r = found.resources
    who = f"{r.gpus} GPUs" if r.gpus else f"{r.workers} workers"
    rate = "as given" if measured else f"assumed, at {flops / 1e6:.3g} MFLOP per pixel; measure it"
    lines = [
        f"{found.hours:,.2f} hours, bound by {found.bound_by}",
        f"  inference {found.inference_hours:,.2f} h: {who}, {r.mpixel_per_second:,.3g} Mpixel/s "
        f"each ({rate}), windows of {spec.map.window} pixels",
        f"  reading   {found.reading_hours:,.2f} h: {r.workers} workers, "
        f"{r.read_mb_per_second:,.0f} MB/s each",
        "  " + ("side by side" if r.gpus else "one after the other, on the same cores")
        + "; writing, start and retries not counted; windows without a valid pixel are, though "
        "they are not inferred",
        f"cost {found.cost:,.2f}: workers {found.worker_cost:,.2f}, GPUs {found.gpu_cost:,.2f}",
    ]  # fmt: skip
    typer.echo("\n".join(lines))
