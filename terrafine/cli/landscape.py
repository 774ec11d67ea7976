"""``terrafine landscape``: generated imagery with known truth and a product that errs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from terrafine.accuracy.report import rich_table
from terrafine.cli.options import JsonOption

if TYPE_CHECKING:
    from terrafine.landscape import Landscape


def command(
    into: Annotated[Path, typer.Argument(help="folder for the files")],
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="another seed is another country")
    ] = 0,
    size: Annotated[int, typer.Option(help="pixels of 3 m a side of a scene, 128 to 4096")] = 1024,
    scenes: Annotated[
        int, typer.Option(min=1, help="training scenes, beside the held-out one")
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Generate a landscape with known truth, to measure how well a recipe learns from its labels.

    Training scenes and one held-out scene of 3-m imagery, the true map, a 10-m label product with
    the errors of the published one (81.2 % right), reference points, and a spec to train on.
    The same seed gives the same files.

    Example: `terrafine landscape landscape --seed 1`, then look at `landscape/landscape.png`, and
    `terrafine run landscape/spec.yaml`
    """
    from terrafine.landscape import generate, summary  # loads matplotlib: only where it is used

    made = generate(into, seed=seed, size=size, scenes=scenes)
    if as_json:
        typer.echo(json.dumps(summary(made), indent=1))
    else:
        _show(made)


def _show(made: Landscape) -> None:
    """Shares and the product's accuracy by class, and where everything is."""
    found = _rows(made)
    Console().print(
        rich_table(
            ("class", "train", "held out", "product finds, train", "held out", "points"),
            found,
            title=f"landscape {made.seed}: share of the area, and of it what the product has right",
        )
    )
    typer.echo(
        f"product right on {made.train.product_oa:.2%} (train) and {made.test.product_oa:.2%} "
        f"(held out); its mixed cells alone would leave {made.test.majority_oa:.1%}"
    )
    typer.echo(f"picture {made.picture}\nfigures {made.summary}\nspec    {made.spec}")


def _rows(made: Landscape) -> list[tuple[str, ...]]:
    """One row of text per class."""
    return [
        (
            name,
            f"{made.train.shares[name]:.1%}",
            f"{made.test.shares[name]:.1%}",
            f"{made.train.producers_accuracy[name]:.1%}",
            f"{made.test.producers_accuracy[name]:.1%}",
            str(made.point_counts[name]),
        )
        for name in made.point_counts
    ]
