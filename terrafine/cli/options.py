"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC", help="YAML file; see `terrafine spec schema`")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="TERRAFINE_DATA",
        help="folder that the spec's paths start from; default: the spec's folder",
    ),
]
WorkdirOption = Annotated[
    Path | None,
    typer.Option("--workdir", "-w", help="folder for results; default: `runs/<name of the spec>`"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for scripts")]
