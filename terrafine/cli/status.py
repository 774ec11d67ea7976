"""``terrafine status``: what runs, how far, how fast, what it costs and when it ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from terrafine.cli.options import DataOption, JsonOption, WorkdirOption
from terrafine.cli.serving import (
    ILL,
    LOCAL,
    NAME,
    NameOption,
    RepositoryOption,
    UrlOption,
    show_servers,
)
from terrafine.errors import StageError
from terrafine.stages import ENGINE, Job
from terrafine.status import StageStatus, read_statuses

_STYLES = {"done": "green", "running": "yellow", "silent": "red", "failed": "red", "stopped": "red"}


@dataclass(frozen=True)
class Prices:
    """Of an hour: a worker's, and that of all the GPUs that serve a run."""

    worker: float
    gpus: float


def status(
    place: Annotated[
        Path | None,
        typer.Argument(metavar="SPEC|WORKDIR", help="a run; default: the model servers"),
    ] = None,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    price_worker: Annotated[float, typer.Option(min=0, help="of a worker for an hour")] = 0.0,
    gpus: Annotated[int, typer.Option(min=0, help="that a run occupies")] = 0,
    price_gpu: Annotated[float, typer.Option(min=0, help="of a GPU for an hour")] = 0.0,
    url: UrlOption = LOCAL,
    repository: RepositoryOption = None,
    name: NameOption = NAME,
    as_json: JsonOption = False,
) -> None:
    """Say how a run stands, wherever it is at work, or who is champion on the model servers.

    Exit code 4 where a stage failed or died, or a server does not answer as it should.

    Examples: `terrafine status runs/zion`, `terrafine status SPEC --price-worker 0.05 --gpus 4
    --price-gpu 2.5`, `terrafine status --url grpc://triton:8001 --repository s3://models/triton`
    """
    if place is None:
        show_servers(url, repository, name, as_json=as_json)
        return
    where, stages = _stages(place, data, workdir)
    prices = Prices(price_worker, gpus * price_gpu)
    if as_json:
        typer.echo(json.dumps({"workdir": str(where), "stages": _json(stages, prices)}, indent=1))
    else:
        _show(where, stages, prices)
    if any(known and _state(known) in ("failed", "silent") for known in stages.values()):
        raise typer.Exit(ILL)


def _stages(
    place: Path, data: Path | None, workdir: Path | None
) -> tuple[Path, dict[str, StageStatus | None]]:
    """The work directory, and its stages in order; None for one that is still to be done."""
    if place.is_dir():
        found = read_statuses(place)
        if not found:
            raise StageError(
                f"{place}: no stage has begun here; give the spec, or the work directory of a run"
            )
        known = {name: found[name] for name in ENGINE.stages if name in found}
        return place, {**known, **found}
    job = Job.open(place, data=data, workdir=workdir)
    found = read_statuses(job.workdir)
    digests: dict[str, str] = {}
    for name in ENGINE.names(job.spec):
        digests |= {} if name in digests else ENGINE.digests(job, name)
    # what was done for another spec, or other data, is still to be done
    return job.workdir, {
        name: found[name] if name in found and found[name].digest == digests[name] else None
        for name in ENGINE.names(job.spec)
        if name != "refuse" or name in found
    }


def _state(known: StageStatus) -> str:
    return "silent" if known.silent else known.state


def _hours(known: StageStatus) -> tuple[float, float]:
    """So far, and at the end of the task in hand."""
    if known.state != "running":
        return known.seconds / 3600, known.seconds / 3600
    so_far = (known.alive - known.started).total_seconds()
    left = known.doing.seconds_left if known.doing else None
    return so_far / 3600, (so_far + (left or 0.0)) / 3600


def _cost(known: StageStatus, hours: float, prices: Prices) -> float:
    return hours * (known.workers * prices.worker + prices.gpus)


def _ends(known: StageStatus) -> datetime | None:
    if _state(known) != "running" or known.doing is None or known.doing.seconds_left is None:
        return None
    return known.alive + timedelta(seconds=known.doing.seconds_left)


def _json(
    stages: dict[str, StageStatus | None], prices: Prices
) -> dict[str, dict[str, object] | None]:
    shown: dict[str, dict[str, object] | None] = {}
    for name, known in stages.items():
        if known is None:
            shown[name] = None
            continue
        so_far, at_end = _hours(known)
        ends = _ends(known)
        shown[name] = {
            **known.model_dump(mode="json"),
            "state": _state(known),
            "worker_hours": known.workers * so_far,
            "cost": _cost(known, so_far, prices),
            "cost_at_end": _cost(known, at_end, prices),
            "ends": None if ends is None else ends.isoformat(),
        }
    return shown


def _show(where: Path, stages: dict[str, StageStatus | None], prices: Prices) -> None:
    priced = prices.worker > 0 or prices.gpus > 0
    table = Table(title=str(where), title_justify="left")
    for column in ("stage", "", "done", "took", "left", "workers", *(["cost"] if priced else [])):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    for name, known in stages.items():
        if known is None:
            table.add_row(name, "[dim]to do[/]")
            continue
        state = _state(known)
        cells = [name, f"[{_STYLES[state]}]{state}[/]", *_figures(known), str(known.workers)]
        table.add_row(*cells, *([_priced(known, prices)] if priced else []))
    console = Console()
    console.print(table)
    for known in filter(None, stages.values()):
        for line in _words(known):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _figures(known: StageStatus) -> tuple[str, str, str]:
    """Done, took, left."""
    so_far, at_end = _hours(known)
    if known.state != "running" or known.doing is None:
        return "", _clock(so_far), ""
    doing = known.doing
    left = "" if doing.seconds_left is None else _clock(at_end - so_far)
    return f"{doing.done:,} of {doing.total:,} {doing.unit}s", _clock(so_far), left


def _priced(known: StageStatus, prices: Prices) -> str:
    so_far, at_end = (_cost(known, hours, prices) for hours in _hours(known))
    return f"{so_far:,.2f} of {at_end:,.2f}" if at_end > so_far else f"{so_far:,.2f}"


def _words(known: StageStatus) -> list[str]:
    """What there is to say of a stage beside its row."""
    state, ends = _state(known), _ends(known)
    if state == "failed":
        return [f"{known.stage} failed: {known.error}"]
    if state == "silent":
        return [
            f"{known.stage}: no sign of life from {known.host} for {_clock(_age(known.alive))}: "
            "killed, or its machine is gone; run it again, it goes on where it can"
        ]
    if state != "running" or known.doing is None:
        return []
    still = _age(known.moved)
    task = "" if known.doing.name == known.stage else f"{known.doing.name}  "
    lines = [f"{known.stage} on {known.host}: {task}{known.doing.shown}".rstrip(" :")]
    if ends is not None:
        lines.append(f"{known.stage} ends about {ends.astimezone():%F %R}, at the speed so far")
    if still > 1 / 12:
        lines.append(f"{known.stage} has not moved for {_clock(still)}")
    return lines


def _age(moment: datetime) -> float:
    """Hours since then."""
    return (datetime.now(UTC) - moment).total_seconds() / 3600


def _clock(hours: float) -> str:
    """0.5 -> "0:30:00"."""
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
