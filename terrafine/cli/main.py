"""The command line: the composition root, which may import every room."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import typer

from terrafine import __version__
from terrafine.cli import (
    assess,
    compare,
    dataset,
    k8s,
    landscape,
    legend,
    mapping,
    model,
    pipeline,
    predict,
    rayjob,
    run,
    serving,
    spec,
    stages,
    status,
    view,
)
from terrafine.errors import TerrafineError, explain

app = typer.Typer(
    name="terrafine",
    help="Fine national land-cover maps from coarse products, without anyone labelling.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("demo")(run.demo)
stages.register(app)
app.command("assess")(assess.command)
app.command("compare")(compare.compare)
app.command("predict")(predict.predict)
app.command("rayjob")(rayjob.rayjob)
serving.register(app)
app.command("status")(status.status)
app.command("landscape")(landscape.command)
app.command("view")(view.view)
app.add_typer(spec.app, name="spec")
app.add_typer(model.app, name="model")
app.add_typer(mapping.app, name="map")
app.add_typer(k8s.app, name="k8s")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(legend.app, name="legend")
app.add_typer(dataset.app, name="dataset")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"terrafine {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="log more, and show tracebacks"),
    log_level: Literal["debug", "info", "warning"] = typer.Option(
        "warning", envvar="TERRAFINE_LOG_LEVEL", help="of the log; info tells of progress"
    ),
) -> None:
    """Options of every command."""
    logging.basicConfig(
        level=logging.INFO if verbose else log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Entry point: one clear sentence and exit code 1 for every error that is not a bug."""
    try:
        app()
    except (TerrafineError, OSError) as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        typer.echo(f"error: {explain(error)}", err=True)
        sys.exit(1)
