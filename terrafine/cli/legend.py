"""``terrafine legend``: the legends and crosswalks terrafine knows."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from terrafine.cli.options import JsonOption
from terrafine.errors import LegendError
from terrafine.legend import CROSSWALKS, LEGENDS

app = typer.Typer(no_args_is_help=True, help="Legends and crosswalks.")


@app.command("list")
def list_all() -> None:
    """Name every legend and every crosswalk.

    Example: `terrafine legend list`
    """
    typer.echo("legends:    " + ", ".join(LEGENDS))
    typer.echo("crosswalks: " + ", ".join(CROSSWALKS))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a legend or a crosswalk")] = "seven",
    as_json: JsonOption = False,
) -> None:
    """Show the classes of a legend, or the codes of a crosswalk.

    Examples: `terrafine legend show seven`, `terrafine legend show FROM-GLC10 --json`
    """
    if name not in LEGENDS and name not in CROSSWALKS:
        raise LegendError(
            f"{name!r} is neither a legend nor a crosswalk; see `terrafine legend list`"
        )
    found = LEGENDS.get(name) or CROSSWALKS[name]
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2))
    elif name in LEGENDS:
        table = Table("code", "class", "colour", title=f"legend {name}", title_justify="left")
        for item in LEGENDS[name].classes:
            table.add_row(str(item.code), item.name, f"[on {item.color}]   [/] {item.color}")
        Console().print(table)
    else:
        table = Table("code", "class", title=f"crosswalk {name}", title_justify="left")
        for code, target in sorted(CROSSWALKS[name].mapping.items()):
            table.add_row(str(code), str(target) if target else "0 (ignored)")
        Console().print(table)
