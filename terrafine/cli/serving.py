"""``terrafine deploy``, ``promote``, ``rollback``, ``watch`` and ``serve``."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table

from serving.triton.canary import Canary
from serving.triton.deploy import lifecycle_on
from serving.triton.lifecycle import Lifecycle, ServerStatus, Status
from serving.triton.repository import Event, ModelRepository
from serving.triton.server import TritonServer
from terrafine import telemetry
from terrafine.cli.options import DataOption, JsonOption, WorkdirOption
from terrafine.errors import ServingError, SpecError, StageError, TerrafineError, explain
from terrafine.export import Release, read_release
from terrafine.export.session import Variant
from terrafine.spec import ServeSpec
from terrafine.spec_errors import explain_validation
from terrafine.stages import ENGINE, Job, made_release, release_stage

ILL = 4

UrlOption = Annotated[
    str, typer.Option(envvar="TERRAFINE_URL", help="of the servers: grpc://HOST:PORT[,HOST:PORT]")
]
DeployUrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="TERRAFINE_URL",
        help="of the servers: grpc://HOST:PORT[,HOST:PORT]; default: serve.server of the spec, "
        "else this machine",
    ),
]
RepositoryOption = Annotated[
    str | None,
    typer.Option(
        "--repository",
        "-r",
        envvar="TERRAFINE_REPOSITORY",
        help="model repository that the servers read: folder or s3://bucket/folder",
    ),
]
NameOption = Annotated[str, typer.Option(help="of the model that clients ask for")]
SecondsOption = Annotated[
    float, typer.Option("--load-seconds", min=1, help="for a load; TensorRT compiles for minutes")
]
LOCAL = "grpc://localhost:8001"
NAME = str(ServeSpec().name)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (deploy, promote, rollback, watch, serve):
        app.command(command.__name__)(command)


class Deployed(BaseModel):
    """What ``terrafine deploy`` did."""

    name: str
    version: int
    release: str
    canary: list[Canary]
    champion: Event | None


def deploy(
    source: Annotated[
        Path, typer.Argument(metavar="SPEC|RELEASE", help="spec whose export is done, or a folder")
    ],
    url: DeployUrlOption = None,
    repository: RepositoryOption = None,
    name: Annotated[
        str | None, typer.Option(help="that clients ask for; default: serve.name")
    ] = None,
    variant: Annotated[
        Variant | None, typer.Option(help="of the release's graphs; default: serve.variant")
    ] = None,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    promote_too: Annotated[
        bool, typer.Option("--promote", help="make it the champion if its canary passes")
    ] = False,
    seconds: SecondsOption = 600,
    as_json: JsonOption = False,
) -> None:
    """Stage a release beside the champion and hold its answers against those of the export.

    Only a release whose gate passed, and whose files are as they were exported, is taken. Clients
    go on with the champion until `terrafine promote`. Options go before the spec's `serve`; a
    release's folder has none, and is served by its defaults.

    Examples: `terrafine deploy examples/zion.yaml --repository s3://models/triton
    --url grpc://triton:8001`, `terrafine deploy runs/zion/export/latest/release -r /models
    --name zion --variant int8 --promote`
    """
    release, stated = _release(source, data, workdir)
    spec = _changed(
        stated, {"name": name, "variant": variant, "server": url, "repository": repository}
    )
    with _lifecycle(spec.server or LOCAL, spec.repository, spec.name, seconds) as lifecycle:
        version, canary = lifecycle.deploy(release, spec)
        champion = lifecycle.promote(release.digest) if promote_too else None
    done = Deployed(
        name=spec.name,
        version=version.number,
        release=release.digest,
        canary=canary,
        champion=champion,
    )
    exact = "byte by byte" if all(one.exact for one in canary) else "within serve.canary_*"
    then = (
        "is champion"
        if champion
        else f"is staged; `terrafine promote --name {spec.name}` makes it the champion"
    )
    _say(
        done,
        as_json,
        f"{done.name} version {done.version} (release {release.digest[:12]}) answers as at export, "
        f"{exact}, and {then}",
    )


def promote(
    url: UrlOption = LOCAL,
    repository: RepositoryOption = None,
    name: NameOption = NAME,
    release: Annotated[
        str | None, typer.Option(help="digest that the staged release must have; default: any")
    ] = None,
    seconds: SecondsOption = 600,
    as_json: JsonOption = False,
) -> None:
    """Make the staged version the champion; if it fails, the champion stays."""
    with _lifecycle(url, repository, name, seconds) as lifecycle:
        event = lifecycle.promote(release)
    _say(event, as_json, f"{name} version {event.version} ({event.release[:12]}) is champion")


def rollback(
    url: UrlOption = LOCAL,
    repository: RepositoryOption = None,
    name: NameOption = NAME,
    seconds: SecondsOption = 600,
    as_json: JsonOption = False,
) -> None:
    """Make the champion before this one the champion again, on every server that answers.

    Those that are away are named; they load it when they start.
    """
    with _lifecycle(url, repository, name, seconds) as lifecycle:
        event = lifecycle.rollback()
    done = f"{name} version {event.version} ({event.release[:12]}) is champion again"
    if event.away:
        done += f"; {', '.join(event.away)} did not answer, and is to load it when it starts"
    _say(event, as_json, done)


def show_servers(url: str, repository: str | None, name: str, *, as_json: bool) -> None:
    """Say who is champion, and ask every server whether it answers as it should.

    Exit code 4 where one does not.
    """
    with _lifecycle(url, repository, name) as lifecycle:
        found = lifecycle.status()
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _show(found)
    if not found.healthy:
        raise typer.Exit(ILL)


def watch(
    url: UrlOption = LOCAL,
    repository: RepositoryOption = None,
    name: NameOption = NAME,
    every: Annotated[float, typer.Option(min=1, help="seconds between looks")] = 10,
    metrics_port: Annotated[int, typer.Option(help="of /metrics for Prometheus")] = 8003,
    runs: Annotated[
        Path | None, typer.Option(help="folder of work directories whose stages are told of too")
    ] = None,
) -> None:
    """Look after the servers until stopped: canary, healing, Prometheus metrics.

    A server that came back without its models, or whose backend process died, loads the champion
    again. Run one beside the servers. With `--runs` the metrics also say how every run stands.
    """
    _stop_on_signal()
    registry = CollectorRegistry()
    metrics = telemetry.ReleaseMetrics(registry=registry)
    if runs is not None:
        telemetry.RunMetrics(runs, registry=registry)
    models = _repository(repository, name)
    with lifecycle_on(url, models):
        pass  # says at once what is missing
    with telemetry.serve(metrics_port, registry):
        while True:
            try:
                # opened anew, since servers come and go behind one name
                with lifecycle_on(url, models) as lifecycle:
                    _look(lifecycle, metrics)
            except TerrafineError as error:
                # a bucket that is away for a moment; the next look says whether it is back
                typer.echo(explain(error), err=True)
            time.sleep(every)


def serve(
    repository: Annotated[str, typer.Argument(help="model repository: folder or s3://...")],
    name: NameOption = NAME,
    http_port: Annotated[int, typer.Option(help="of HTTP")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="of gRPC")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="of Triton's metrics")] = 8002,
    every: Annotated[float, typer.Option(min=1, help="seconds between looks at it")] = 10,
) -> None:
    """Run a real Triton on this machine until stopped, for development and tests.

    It serves the champion of a repository, if there is one, and takes `terrafine deploy`.
    Production runs NVIDIA's container over the same repository: docs/serving.md.
    """
    _stop_on_signal()
    server = TritonServer(repository, load=[name], ports=(http_port, grpc_port, metrics_port))
    with server, _lifecycle(server.grpc_url, repository, name) as lifecycle:
        typer.echo(f"{server.grpc_url} {server.http_url} {server.metrics_url}")
        while not server.ended(seconds=every):
            try:
                lifecycle.heal()
            except TerrafineError as error:
                typer.echo(explain(error), err=True)
    raise ServingError(f"Triton over {repository} ended by itself; start it again")


def _look(lifecycle: Lifecycle, metrics: telemetry.ReleaseMetrics) -> None:
    try:
        found = lifecycle.heal()
    except TerrafineError as error:
        typer.echo(explain(error), err=True)
        found = lifecycle.status()
    for address in found.healed:
        metrics.healed(lifecycle.name, address)
    champion = found.champion
    metrics.champion(
        found.name, champion.version if champion else 0, champion.at if champion else None
    )
    for server in found.servers:
        canary = server.canary or Canary(verdict="silent")
        metrics.server(
            found.name,
            server.address,
            live=server.live,
            passed=canary.passed,
            agreement=canary.class_agreement,
            seconds=canary.seconds,
        )
    metrics.looked(found.name, [server.address for server in found.servers])


def _release(source: Path, data: Path | None, workdir: Path | None) -> tuple[Release, ServeSpec]:
    if source.is_dir():
        return read_release(source), ServeSpec()
    job = Job.open(source, data=data, workdir=workdir)
    stage = release_stage(job.spec)
    made = ENGINE.find(job, stage)
    if made is None:
        raise StageError(
            f"{source}: its model is not there yet in {job.workdir}; run `terrafine {stage} "
            "SPEC` first, or `terrafine run SPEC` for all"
        )
    return made_release(job, made), job.spec.serve


def _changed(spec: ServeSpec, options: dict[str, str | None]) -> ServeSpec:
    """How a release is served, by the options that are given; SpecError where one cannot be."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return ServeSpec.model_validate(spec.model_dump() | given)
    except ValidationError as error:
        wrong = "; ".join(explain_validation(error, ServeSpec.model_json_schema()))
        raise SpecError(f"terrafine deploy --{wrong}") from error


@contextmanager
def _lifecycle(
    url: str, repository: str | None, name: str, seconds: float = 600
) -> Iterator[Lifecycle]:
    with lifecycle_on(url, _repository(repository, name), seconds=seconds) as lifecycle:
        yield lifecycle


def _repository(location: str | None, name: str) -> ModelRepository:
    if location is None:
        raise ServingError(
            "no model repository: give --repository (the folder or s3:// URL that the servers "
            "read), set TERRAFINE_REPOSITORY, or write serve.repository into the spec"
        )
    return ModelRepository(location, name)


def _stop_on_signal() -> None:
    """Kubernetes stops by SIGTERM, which else would leave the server behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise typer.Exit(0)

    signal.signal(signal.SIGTERM, stop)


def _say(done: BaseModel, as_json: bool, sentence: str) -> None:
    typer.echo(done.model_dump_json(indent=2) if as_json else sentence)


def _show(found: Status) -> None:
    console = Console()
    for title, event in (("champion", found.champion), ("before it", found.before)):
        if event is not None:
            console.print(
                f"{title}: version {event.version}, release {event.release[:12]}, {event.at:%F %R}"
            )
    if found.champion is None:
        console.print(f"{found.repository}: nothing was ever promoted as {found.name}")
    if found.begun is not None:
        console.print(
            f"{found.begun.event} of version {found.begun.version}: begun {found.begun.at:%F %T}, "
            "not ended"
        )
    if found.candidate is not None:
        console.print(f"candidate: version {found.candidate}")
    table = Table("server", "live", "versions", "canary")
    for server in found.servers:
        table.add_row(*_cells(server))
    console.print(table)


def _cells(server: ServerStatus) -> Iterator[str]:
    yield server.address
    yield "yes" if server.live else "no"
    yield ", ".join(f"{number} {state.lower()}" for number, state in server.versions.items())
    if server.canary is None:
        yield "-"
    else:
        yield "passed" if server.canary.passed else server.canary.reason
