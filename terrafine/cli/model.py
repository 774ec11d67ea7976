"""``terrafine model``: networks and model bundles."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from terrafine.cli.options import JsonOption
from terrafine.errors import ModelError
from terrafine.models import describe

app = typer.Typer(no_args_is_help=True, help="Networks.")


@app.command()
def info(
    arch: Annotated[
        str,
        typer.Option(
            help="hrnet_w<width of the finest branch>, unet_w<width of the finest level> or "
            "fcdensenet64_k<growth>"
        ),
    ] = "hrnet_w24",
    bands: Annotated[int, typer.Option(min=1, help="input bands")] = 4,
    classes: Annotated[int, typer.Option(min=2, help="outputs")] = 7,
    stem_strides: Annotated[str, typer.Option(help="of HRNet's two first convolutions")] = "2,1",
    stem_channels: Annotated[int, typer.Option(min=4, help="of HRNet's stem and first stage")] = 64,
    first_norm: Annotated[
        Literal["instance", "batch"], typer.Option(help="norm after the first convolution")
    ] = "instance",
    as_json: JsonOption = False,
) -> None:
    """Parameters, cost and receptive field of a network.

    Examples: `terrafine model info --arch hrnet_w24 --bands 4 --classes 10 --json`,
    `terrafine model info --arch unet_w64`, `terrafine model info --arch fcdensenet64_k12`
    """
    try:
        first, second = (int(part) for part in stem_strides.split(","))
    except ValueError as error:
        raise ModelError(
            f"--stem-strides {stem_strides!r}: give two numbers, for example 2,1"
        ) from error
    found = describe(
        arch,
        bands=bands,
        classes=classes,
        stem_strides=(first, second),
        first_norm=first_norm,
        stem_channels=stem_channels,
    )
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table(title=arch, show_header=False, title_justify="left")
    for key, value in found.items():
        table.add_row(
            key.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value)
        )
    Console().print(table)
