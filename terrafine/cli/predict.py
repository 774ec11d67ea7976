"""``terrafine predict``: one image through a model server, or through a graph in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from serving.triton.client import CHAMPION, TritonPredictor
from terrafine.cli.options import JsonOption
from terrafine.errors import ServingError, SpecError
from terrafine.export import GraphInfo
from terrafine.legend import NO_CLASS, UNWRITTEN
from terrafine.mapping import OnnxPredictor, cut_for, map_image
from terrafine.raster import Mosaic, open_scene, write_geotiff
from terrafine.spec import EnhanceSpec, ImagerySpec, SceneSpec


def predict(
    image: Annotated[Path, typer.Argument(metavar="IMAGE.tif", help="bands as the model has them")],
    url: Annotated[
        str | None, typer.Option(help="of the servers: grpc://host:port[,host:port...]")
    ] = None,
    graph: Annotated[
        Path | None, typer.Option(help="ONNX file to run in this process instead")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="default: IMAGE.landcover.tif beside the image")
    ] = None,
    model: Annotated[str, typer.Option(help="name of the model on the servers")] = "landcover",
    release: Annotated[
        str, typer.Option(help="digest of the release that has to answer; default: the champion's")
    ] = CHAMPION,
    bands: Annotated[
        str | None,
        typer.Option(help="the file's bands in the model's order, as 3,2,1,4; default: the first"),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="imagery.scale of the training; default: the model's, no other fits"),
    ] = None,
    nodata: Annotated[
        float | None, typer.Option(help="value of missing pixels, beside what the file says")
    ] = None,
    core: Annotated[
        int | None,
        typer.Option(help="pixels a side that a window contributes; default: as many as can be"),
    ] = None,
    enhance: Annotated[
        bool, typer.Option(help="sharpen the legend's enhanced class by CLAHE, as `terrafine map`")
    ] = True,
    in_flight: Annotated[int, typer.Option(min=1, help="windows asked about at once")] = 4,
    deadline: Annotated[
        float, typer.Option(min=1, help="seconds for the answer to one window, all tries together")
    ] = 120.0,
    as_json: JsonOption = False,
) -> None:
    """Map one GeoTIFF: its land cover in the legend's colours, on the image's own grid.

    The whole map comes from one release. Examples: `terrafine predict IMAGE.tif --url
    grpc://localhost:8001`, `terrafine predict IMAGE.tif --graph
    runs/zion/export/latest/release/model.fp32.onnx`
    """
    started = time.monotonic()
    target = out or image.with_suffix(".landcover.tif")
    if target.resolve() == image.resolve():
        raise SpecError(f"{target}: is the image itself; give --out another name")
    if (url is None) == (graph is None):
        raise ServingError("give either --url of a model server or --graph of an ONNX file")
    with ExitStack() as until_done:
        predictor: OnnxPredictor | TritonPredictor
        if graph is not None:
            predictor = OnnxPredictor(graph)
            made_by, at_once = f"model {predictor.info.model}", 1
        else:
            predictor = until_done.enter_context(
                TritonPredictor(
                    str(url), model=model, release=release, in_flight=in_flight, deadline=deadline
                )
            )
            made_by, at_once = f"release {predictor.release}", in_flight
        legend = predictor.info.legend
        imagery = _imagery(image, predictor.info, bands=bands, scale=scale, nodata=nodata)
        landcover_HW = map_image(
            imagery,
            predictor,
            spec=cut_for(predictor.window, core=core, enhance=EnhanceSpec(enabled=enhance)),
            legend=legend,
            at_once=at_once,
        )
    write_geotiff(
        target, landcover_HW, imagery.grid, imagery.window,
        nodata=UNWRITTEN, legend=legend, tags={"MADE_BY": made_by},
    )  # fmt: skip
    names = {NO_CLASS: "no class", **dict(zip(legend.codes, legend.names, strict=True))}
    codes, counts = np.unique(landcover_HW, return_counts=True)
    pixels = {names[code]: n for code, n in zip(codes.tolist(), counts.tolist(), strict=True)}
    seconds = round(time.monotonic() - started, 3)
    if as_json:
        said = {"out": str(target), "made_by": made_by, "seconds": seconds, "pixels": pixels}
        typer.echo(json.dumps(said))
    else:
        shares = ", ".join(f"{name} {n / landcover_HW.size:.1%}" for name, n in pixels.items())
        typer.echo(f"{target}: {shares}\n{made_by}, {seconds:.1f} s")


def _imagery(
    image: Path, info: GraphInfo, *, bands: str | None, scale: float | None, nodata: float | None
) -> Mosaic:
    """The image as the model takes it: its bands in order, missing pixels as the model's fill.

    SpecError where what is asked for, or what the file calls its bands, contradicts the model.
    """
    try:
        indexes = tuple(int(part) for part in bands.split(",")) if bands else None
    except ValueError as error:
        raise SpecError(f"--bands {bands!r}: give numbers from 1, as 3,2,1,4") from error
    if scale is not None and scale != info.scale:
        raise SpecError(
            f"--scale {scale:g}: the model was trained on imagery at scale {info.scale:g}; leave "
            "--scale out, and convert an image that stores other numbers than that imagery did"
        )
    spec = ImagerySpec(
        scenes=(SceneSpec(name="image", files=(image.name,), band_indexes=indexes),),
        bands=info.band_names,
        scale=info.scale,
        nodata=nodata,
    )
    opened = replace(open_scene(spec.scenes[0], spec, image.resolve().parent), fill=info.fill)
    (file,) = opened.files
    _require_order(file.descriptions(), file.indexes, info.band_names, image)
    return Mosaic(
        zone="image",
        scenes=(opened,),
        numbers=(1,),
        grid=opened.grid,
        window=opened.window,
        fill=opened.fill,
        bands=opened.bands,
    )


def _require_order(
    said: Sequence[str], indexes: Sequence[int], names: Sequence[str], image: Path
) -> None:
    """SpecError where the file itself says that another of its bands is the one the model takes."""
    described = [text.strip().lower() for text in said]
    wanted = [name.lower() for name in names]
    for index, name in zip(indexes, wanted, strict=True):
        found = described[index - 1]
        if found != name and (found in wanted or name in described):
            order = [described.index(one) + 1 if one in described else "?" for one in wanted]
            raise SpecError(
                f"{image}: the model takes {', '.join(names)} in this order, but the file calls "
                f"its band {index} {said[index - 1]!r}; give --bands {','.join(map(str, order))}"
            )
