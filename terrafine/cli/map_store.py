"""``terrafine map diff | export | release | rollback | releases | update``: a map store's life."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serving.engines import on_engines
from terrafine.cli.options import DataOption, JsonOption, SpecArgument, WorkdirOption
from terrafine.errors import MapStoreError
from terrafine.mapping import (
    Change,
    Difference,
    MapOutcome,
    MapReader,
    MapStore,
    difference,
    open_map,
)
from terrafine.publish import write_overviews
from terrafine.publish.export_cogs import export_cogs
from terrafine.publish.export_zarr import export_zarr
from terrafine.publish.geography import pixel_area_km2
from terrafine.raster import Region, Regions
from terrafine.stages import Job
from terrafine.stages.map import map_place
from terrafine.stages.update import update_map


class ExportFormat(StrEnum):
    """What an export is written as."""

    zarr = "zarr"
    cog = "cog"
    stac = "stac"


StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="folder or s3:// URL of the map store, e.g. RUN/map.icechunk"
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="shards at a time; default: one per core")
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``terrafine map``."""
    for command in (diff, export, release, rollback, releases, update):
        app.command(command.__name__)(command)


def diff(
    store: StoreArgument,
    before: Annotated[str, typer.Argument(help="release (or run, or snapshot)")],
    after: Annotated[str, typer.Argument(help="release (or run, or snapshot)")],
    regions: Annotated[
        Path | None, typer.Option(help="file of polygons (provinces ...) to count by")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="of that file, with the names; default: name")
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="print region,from,to,pixels,km2 for a spreadsheet")
    ] = False,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """What changed from one release to another: pixels and km² by class, and by region.

    Example: `terrafine map diff RUN/map.icechunk china-2024 china-2025 --regions provinces.gpkg`
    """
    reader = open_map(_place(store))
    found = difference(
        reader,
        before,
        after,
        pixel_km2=_pixel_km2(reader),
        regions=Regions.read(regions, column=column) if regions else None,
        workers=workers or os.cpu_count() or 1,
    )
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    elif as_csv:
        _print_csv(found)
    else:
        _show_difference(found)


def export(
    store: StoreArgument,
    into: Annotated[Path, typer.Option(help="new folder; it appears when it is whole")],
    release: Annotated[
        str | None, typer.Option(help="release, run or snapshot; default: the current release")
    ] = None,
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="zarr: plain Zarr v3 with overviews; cog: a GeoTIFF per shard and a VRT per zone; "
            "stac: the same with a STAC collection",
        ),
    ] = ExportFormat.cog,
    array: Annotated[
        list[str] | None, typer.Option(help="landcover, confidence or source; GeoTIFFs only")
    ] = None,
    region: Annotated[
        Path | None,
        typer.Option(help="file of polygons; only shards that touch one; GeoTIFFs only"),
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Write a release as files that every tool reads; goes on where a killed export stopped.

    Example: `terrafine map export RUN/map.icechunk --release china-2025 --format stac --into out`
    """
    reader, at_once = open_map(_place(store)), workers or os.cpu_count() or 1
    release = release or _current(reader)
    if form is ExportFormat.zarr:
        if array or region:
            raise typer.BadParameter("--array and --region are for GeoTIFFs; Zarr is copied whole")
        export_zarr(reader, release, into, workers=at_once)
        typer.echo(f"{into}: Zarr v3 of {release}")
        return
    shards = export_cogs(
        reader,
        release,
        into,
        arrays=tuple(array or ("landcover", "confidence")),
        region=Region.read(str(region.resolve()), Path("/"), key="--region") if region else None,
        stac=form is ExportFormat.stac,
        workers=at_once,
    )
    typer.echo(f"{into}: {shards} shards of {release}")


def release(
    store: StoreArgument,
    name: Annotated[str, typer.Argument(help="of the new release")],
    run: Annotated[str | None, typer.Option(help="default: the only run without a release")] = None,
) -> None:
    """Give a complete run overviews and a name for ever, and make it what readers see."""
    _release(MapStore(_place(store)), name, run)


def rollback(
    store: StoreArgument, name: Annotated[str, typer.Argument(help="an earlier or later release")]
) -> None:
    """Make another release what readers see."""
    writer = MapStore(_place(store))
    writer.rollback(name)
    _show_releases(writer)


def releases(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Every release of a map store, oldest first."""
    _show_releases(open_map(_place(store)), as_json=as_json)


def update(
    spec: SpecArgument,
    base: Annotated[str, typer.Option(help="map release to bring up to date")],
    name: Annotated[
        str | None, typer.Option(help="release it as this; default: `terrafine map release` later")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="folder `release` of the model that mapped BASE; default: looked for"),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="of the model, for map.predictor: torch")
    ] = None,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Map what new scenes change and what a release lacks, into a run that shares its other shards.

    SPEC is the spec of the release with the new scenes added, or another map.region; the model
    stays. Killed, it goes on where it was.

    Example: `terrafine map update SPEC --base china-2025 --name china-2025.1`
    """
    job = on_engines(Job.open(spec, data=data, workdir=workdir))
    done = update_map(job, base, model=model, bundle=bundle)
    show_update(done, as_json=as_json)
    if name is not None:
        _release(MapStore(map_place(job)), name, done.run, show=not as_json)


def show_update(done: MapOutcome, *, as_json: bool) -> None:
    """Print what an update did."""
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=1))
    else:
        typer.echo(f"{done.run}: {done.shards} shards mapped again, {done.resumed} of them before")


def _release(store: MapStore, name: str, run: str | None, *, show: bool = True) -> None:
    chosen = run or _only_open_run(store)
    if not store.missing(chosen):
        write_overviews(store, chosen, workers=os.cpu_count() or 1)
    store.release(name, chosen)
    if show:
        _show_releases(store)


def _current(store: MapReader) -> str:
    for known in store.releases():
        if known.current:
            return known.name
    raise MapStoreError(f"{store.path}: no release yet; name a run (--release)")


def _only_open_run(store: MapStore) -> str:
    released = {known.record.run for known in store.releases()}
    runs = [run for run in store.runs() if run not in released]
    if len(runs) != 1:
        raise MapStoreError(
            f"{store.path}: {len(runs)} runs have no release yet"
            + (f" ({', '.join(runs)}); name one with --run" if runs else "; map something new")
        )
    return runs[0]


def _show_releases(store: MapReader, *, as_json: bool = False) -> None:
    found = store.releases()
    if as_json:
        listed = [{**asdict(r), "written_at": r.written_at.isoformat()} for r in found]
        typer.echo(json.dumps(listed, indent=1))
        return
    table = Table()
    for heading in ("release", "current", "written", "run", "model", "scenes"):
        table.add_column(heading, no_wrap=True)
    for known in found:
        table.add_row(
            known.name,
            "yes" if known.current else "",
            f"{known.written_at:%Y-%m-%d %H:%M}",
            known.record.run,
            known.record.model[:12],
            str(len(known.record.scenes)),
        )
    Console().print(table)


def _place(store: str) -> Path | str:
    return store if "://" in store else Path(store)


def _pixel_km2(store: MapReader) -> dict[str, float]:
    return {z: pixel_area_km2(store.grid(z), store.window(z)) for z in store.zones()}


def _print_csv(found: Difference) -> None:
    table = csv.writer(sys.stdout)
    table.writerow(["region", "from", "to", "pixels", "km2"])
    for change in found.regions or (found.total,):
        for before, pixels, km2 in zip(found.classes, change.pixels, change.km2, strict=True):
            for after, number, area in zip(found.classes, pixels, km2, strict=True):
                if number:
                    table.writerow([change.region, before, after, number, f"{area:.6f}"])


def _show_difference(found: Difference) -> None:
    console = Console()
    matrix = Table(
        title=f"{found.before} (rows) to {found.after} (columns), km²", title_justify="left"
    )
    matrix.add_column("")
    for name in found.classes:
        matrix.add_column(name, justify="right")
    for row, (name, km2) in enumerate(zip(found.classes, found.total.km2, strict=True)):
        cells = (_short(v) if v else "" for v in km2)
        matrix.add_row(name, *(f"[bold]{c}[/]" if i == row else c for i, c in enumerate(cells)))
    console.print(matrix)
    regions = Table("region", title="changed, of what is mapped in both", title_justify="left")
    for heading in ("pixels", "km²", "%", "most of all"):
        regions.add_column(heading, justify="left" if heading == "most of all" else "right")
    for change in (*found.regions, found.total):
        share = change.changed / change.mapped if change.mapped else 0.0
        regions.add_row(
            change.region,
            f"{change.changed:,}",
            _short(change.changed_km2),
            f"{share:.2%}",
            _largest(found, change),
            style="bold" if change is found.total else None,
        )
    console.print(regions)


def _short(km2: float) -> str:
    return f"{km2:,.0f}" if km2 >= 100 else f"{km2:.3g}"


def _largest(found: Difference, change: Change) -> str:
    size = len(found.classes) - 1
    pixels, row, col = max(
        (change.pixels[r][c], r, c) for r in range(size) for c in range(size) if r != c
    )
    return f"{found.classes[row]} to {found.classes[col]}" if pixels else ""
