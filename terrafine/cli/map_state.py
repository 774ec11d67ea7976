"""``terrafine map status | verify | gc``: how a map store stands."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serving.engines import on_engines
from terrafine.cli.options import DataOption, JsonOption, SpecArgument, WorkdirOption
from terrafine.errors import StageError
from terrafine.mapping import MapStore, Place, RunState, Verified, run_states
from terrafine.progress import progress
from terrafine.stages import ENGINE, Job
from terrafine.stages.map import map_place
from terrafine.stages.verify import verify_map, verify_release


def register(app: typer.Typer) -> None:
    """Add the commands to ``terrafine map``."""
    for command in (status, verify, gc):
        app.command(command.__name__)(command)


def status(
    place: Annotated[
        str,
        typer.Argument(metavar="STORE|SPEC", help="folder or URL of the map store, or the spec"),
    ],
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs of a map store: shards done, pixels, last commit, scenes that could not be read.

    Can be asked while a map is under way. Example: `terrafine map status runs/zion/map.icechunk`
    """
    store = MapStore(_store(place, workdir))
    found = run_states(store)
    if as_json:
        shown = [asdict(s) | {"last_commit": s.last_commit.isoformat()} for s in found]
        typer.echo(json.dumps({"store": str(store.path), "runs": shown}, indent=1))
        return
    columns = ("run", "shards", "done", "mapped", "no data", "last commit", "model", "releases")
    table = Table(title=str(store.path), title_justify="left")
    for column in columns:
        table.add_column(column)
    for state in found:
        table.add_row(*_row(state))
    console = Console()
    console.print(table)
    for state in found:
        for scene, why in state.unreadable.items():
            console.print(f"{state.run}: scene {scene} was passed over: {why}", soft_wrap=True)
        if state.stale:
            console.print(
                f"{state.run}: {state.stale:,} shards are older than its scenes: map.region left "
                "them out; update from it with a region that has them",
                soft_wrap=True,
            )


def _row(state: RunState) -> list[str]:
    pixels = max(state.mapped + state.explained, 1)
    return [
        state.run,
        f"{state.done:,} of {state.planned:,}",
        f"{state.done / max(state.planned, 1):.1%}",
        f"{state.mapped / 1e6:,.1f} Mpixel",
        f"{state.explained / pixels:.1%}",
        state.last_commit.strftime("%Y-%m-%d %H:%M:%S"),
        state.model[:12],
        ", ".join(state.releases) or "-",
    ]


def verify(
    spec: SpecArgument,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    shards: Annotated[int, typer.Option(min=1, help="looked at again, chosen at random")] = 4,
    seed: Annotated[
        int | None, typer.Option(help="of the choice; default: another one every time")
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(help="map release, an update's too: what its run mapped; default: SPEC's map"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="folder `release` of the model that mapped RELEASE; default: looked for"),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="of that model, for map.predictor: torch")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute a random sample of a finished map's shards again and compare bytes.

    Exit code 4 where one differs. Example: `terrafine map verify SPEC --shards 20`
    """
    job = on_engines(Job.open(spec, data=data, workdir=workdir))
    seed = secrets.randbelow(2**31) if seed is None else seed
    typer.echo(f"the same sample again: --seed {seed}", err=True)
    found = (
        _own_map(job, shards, seed)
        if release is None
        else verify_release(job, release, model=model, bundle=bundle, shards=shards, seed=seed)
    )
    verified = []
    with progress("verify", total=shards, unit="shard") as task:
        for shard in found:
            verified.append(shard)
            task.advance()
    wrong = [shard for shard in verified if shard.differs or shard.damaged]
    if as_json:
        typer.echo(json.dumps([asdict(shard) for shard in verified], indent=1))
    else:
        for shard in wrong:
            typer.echo(
                f"zone {shard.zone}, row {shard.row}, column {shard.col}: differs from what the "
                f"model says now: {', '.join(shard.differs) or 'nothing'}; damaged since it was "
                f"written: {', '.join(shard.damaged) or 'nothing'}"
            )
        typer.echo(f"{len(verified) - len(wrong)} of {len(verified)} shards are the same bytes")
    if wrong:
        raise typer.Exit(4)


def _own_map(job: Job, shards: int, seed: int) -> Iterator[Verified]:
    names = ("map", *ENGINE.stages["map"].stands_on(job.spec))
    found = {name: ENGINE.find(job, name) for name in names}
    needed = {name: manifest for name, manifest in found.items() if manifest is not None}
    if len(needed) < len(found):
        raise StageError(
            f"{job.workdir}: the map of this spec is not finished; run `terrafine map SPEC` first, "
            "or name a release of it (--release)"
        )
    return verify_map(job, needed["map"], needed, shards=shards, seed=seed)


def gc(
    place: Annotated[
        str,
        typer.Argument(metavar="STORE|SPEC", help="folder or URL of the map store, or the spec"),
    ],
    workdir: WorkdirOption = None,
) -> None:
    """Free the space of what dead workers wrote and no map shows; refused during a run."""
    store = MapStore(_store(place, workdir))
    typer.echo(f"{store.path}: {store.collect() / 1e6:,.1f} MB freed")


def _store(place: str, workdir: Path | None) -> Place:
    if "://" in place:
        return place
    if Path(place).is_dir():
        return Path(place)
    return map_place(Job.open(Path(place), data=None, workdir=workdir))
