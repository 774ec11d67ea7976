"""``terrafine model``: networks and model bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from terrafine.cli.options import JsonOption
from terrafine.errors import ModelError
from terrafine.export import read_info
from terrafine.models import describe, describe_spec
from terrafine.spec import FirstNorm

app = typer.Typer(no_args_is_help=True, help="Networks.")


@app.command()
def info(
    arch: Annotated[
        str,
        typer.Option(
            help="`hrnet_w<width of the finest branch>`, `unet_w<width of the finest level>` or "
            "`fcdensenet64_k<growth>`"
        ),
    ] = "hrnet_w24",
    bands: Annotated[int, typer.Option(min=1, help="input bands")] = 4,
    classes: Annotated[int, typer.Option(min=2, help="outputs")] = 7,
    stem_strides: Annotated[str, typer.Option(help="of HRNet's two first convolutions")] = "2,1",
    stem_channels: Annotated[int, typer.Option(min=4, help="of HRNet's stem and first stage")] = 64,
    first_norm: Annotated[
        FirstNorm, typer.Option(help="norm after the first convolution")
    ] = "instance",
    bundle: Annotated[
        Path | None, typer.Option(help="folder of a model bundle, pruned or not, to describe")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Parameters, cost and receptive field of a network.

    With --bundle of that one, whatever the other options say.

    Examples: `terrafine model info --arch hrnet_w24 --bands 4 --classes 10 --json`,
    `terrafine model info --arch unet_w64`,
    `terrafine model info --bundle runs/zion/prune/latest/model`
    """
    if bundle is not None:
        _show(_of_bundle(bundle), as_json)
        return
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
    _show(found, as_json)


def _of_bundle(folder: Path) -> dict[str, Any]:
    described = read_info(folder)
    found = describe_spec(
        described.model,
        bands=len(described.bands),
        classes=len(described.legend.classes),
        channels=described.channels,
    )
    return {**found, "digest": described.digest}


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table(title=found["arch"], show_header=False, title_justify="left")
    for key, value in found.items():
        table.add_row(
            key.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value)
        )
    Console().print(table)
