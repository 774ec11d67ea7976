"""``terrafine assess``: the stage of a run, or any map against any reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from terrafine.accuracy import AccuracyReport, Samples, assess, sample
from terrafine.cli.options import DataOption, JsonOption, WorkdirOption
from terrafine.cli.stages import run_stage
from terrafine.errors import AccuracyError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import CROSSWALKS, LEGENDS, Legend, UInt8Array
from terrafine.mapping import is_map_store, open_map
from terrafine.raster import is_vector, open_class_raster, read_points
from terrafine.spec import LabelSource, ReferenceSpec
from terrafine.stages import Job

ReadMap = Callable[[Window], UInt8Array]


def command(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="assess the model of this run")
    ] = None,
    map_path: Annotated[
        Path | None, typer.Option("--map", help="GeoTIFF of class codes, or a map store")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="raster of class codes, or any vector file of points")
    ] = None,
    legend: Annotated[str, typer.Option(help="legend of a GeoTIFF; a store knows its own")] = (
        "seven"
    ),
    map_crosswalk: Annotated[
        str | None, typer.Option(help="if the GeoTIFF holds a product's own codes")
    ] = None,
    crosswalk: Annotated[
        str | None, typer.Option(help="of the reference; default: it holds the legend's codes")
    ] = None,
    class_column: Annotated[str, typer.Option(help="of a vector reference")] = "class",
    reference_crs: Annotated[str | None, typer.Option(help="overrides what the file says")] = None,
    ref: Annotated[str, typer.Option(help="release or run of a map store")] = "main",
    unit: Annotated[
        int,
        typer.Option(
            min=1, help="pixels a side of resampled blocks, no smaller than errors are alike"
        ),
    ] = 256,
    bootstrap: Annotated[int, typer.Option(min=100, help="resamples")] = 1000,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
    seed: int = 0,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of a map against a reference raster or points, with bootstrap intervals.

    Examples: `terrafine assess --map map.tif --reference points.gpkg --json`,
    `terrafine assess --map runs/x/map.icechunk --reference nlcd.tif --crosswalk NLCD`,
    `terrafine assess SPEC` for the stage of a run.
    """
    if spec is not None:
        if map_path or reference:
            raise AccuracyError("give either a SPEC, or --map with --reference, not both")
        run_stage(Job.open(spec, data=data, workdir=workdir), "assess", as_json)
        return
    if map_path is None or reference is None:
        raise AccuracyError("give --map MAP and --reference RASTER_OR_POINTS, or a SPEC")
    map_path, reference = map_path.resolve(), reference.resolve()
    known = _legend(map_path, legend)
    source = ReferenceSpec(
        file=reference.name,
        crosswalk=crosswalk or _own_codes(known),
        crs=reference_crs,
        class_column=class_column,
        region="all",
    )
    vector = is_vector(reference)
    opened = (read_points if vector else open_class_raster)(source, known, reference.parent)
    parts = [
        sample(read, grid, windows, opened, unit=unit)
        for read, grid, windows in _zones(map_path, known, map_crosswalk, ref)
    ]
    report = assess(
        Samples.concatenate(parts),
        known,
        map_name=map_path.name,
        reference_name=reference.name,
        kind="points" if vector else "raster",
        resamples=bootstrap,
        confidence=confidence,
        seed=seed,
    )
    _print(report, map_path, reference, as_json)


def _print(report: AccuracyReport, map_path: Path, reference: Path, as_json: bool) -> None:
    if not report.reference_samples:
        raise AccuracyError(
            f"{reference}: no reference class lies on {map_path}; check both CRSs, and the "
            "reference's crosswalk"
        )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        Console().print(report.to_rich())


def _legend(map_path: Path, name: str) -> Legend:
    if is_map_store(map_path):
        return open_map(map_path).legend
    if name not in LEGENDS:
        raise AccuracyError(f"legend {name!r} is unknown; known: {', '.join(LEGENDS)}")
    return LEGENDS[name]


def _own_codes(legend: Legend) -> str | dict[int, int | str]:
    """The crosswalk of a raster that already holds the legend's codes."""
    if legend.name in CROSSWALKS:
        return legend.name
    return {**_codes(legend), 0: 0}


def _zones(
    map_path: Path, legend: Legend, crosswalk: str | None, ref: str
) -> Iterator[tuple[ReadMap, PixelGrid, list[Window]]]:
    """Every zone of a map: how to read it, and where it has been mapped."""
    if is_map_store(map_path):
        store = open_map(map_path)
        if ref == "main" and not store.releases():
            raise AccuracyError(
                f"{map_path}: nothing is released yet; name a run with --ref: "
                f"{', '.join(store.runs()) or 'there is none either'}"
            )
        for zone in store.zones():
            shards = sorted(store.written(zone, ref))
            yield partial(store.read, zone, ref=ref), store.grid(zone), shards
        return
    source = LabelSource(
        file=map_path.name, crosswalk=crosswalk or {**_codes(legend), 0: 0, 255: 0}
    )
    raster = open_class_raster(source, legend, map_path.parent)
    yield partial(raster.read, raster.grid), raster.grid, [raster.window]


def _codes(legend: Legend) -> dict[int, int | str]:
    return {code: code for code in legend.codes}
