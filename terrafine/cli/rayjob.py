"""``terrafine rayjob``: a heavy stage as a RayJob, as a pipeline's step launches it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from serving.rayjob.stages import launch_stage, order_for
from serving.rayjob.template import TEMPLATES, filled, read_template, this_pod
from terrafine.cli.options import DataOption, SpecArgument, WorkdirOption
from terrafine.cli.stages import run_stage
from terrafine.stages import Job


def rayjob(
    stage: Annotated[
        Literal["train-preliminary", "train", "prune", "map"], typer.Argument(metavar="STAGE")
    ],
    spec: SpecArgument,
    templates: Annotated[
        Path,
        typer.Option(envvar=TEMPLATES, help="folder with train.yaml, prune.yaml and map.yaml"),
    ],
    data: DataOption = None,
    workdir: WorkdirOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the RayJob's manifest, and stop")
    ] = False,
) -> None:
    """Have a RayJob do a stage (train-preliminary, train, prune, map), and wait for it.

    Folders are named as the RayJob's pods see them, on a volume that is mounted here too. It is
    deleted where this command is interrupted, and found again where it was killed.

    Example: `terrafine rayjob map spec.yaml --templates /etc/terrafine/rayjobs --data /work/data
    --workdir /work/runs/china --dry-run`
    """
    job = Job.open(spec, data=data, workdir=workdir)
    if dry_run:
        manifest = filled(read_template(templates, stage), order_for(job, stage), this_pod())
        typer.echo(yaml.safe_dump(manifest, sort_keys=False), nl=False)
        return
    os.environ[TEMPLATES] = str(templates)
    launch_stage(job, stage, [])
    run_stage(job, stage, as_json=False)
