"""``terrafine pipeline compile | submit | run-local``: the Kubeflow pipelines."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from terrafine import __version__
from terrafine.cli.options import DataOption, JsonOption, SpecArgument, WorkdirOption
from terrafine.cli.run import finish, released
from terrafine.errors import PipelineError
from terrafine.spec import AS_IN_SPEC, load_spec
from terrafine.stages import Job

TOKEN = "TERRAFINE_KFP_TOKEN"

# not the overlay's, by which its leftovers are deleted
_LABELS = {"app.kubernetes.io/part-of": "terrafine-runs"}


class Pipeline(StrEnum):
    """The pipelines there are."""

    national_map = "national_map"
    retrain = "retrain"
    map_only = "map_only"


app = typer.Typer(
    no_args_is_help=True,
    help="The Kubeflow pipelines: compile them, submit a run, or run one on this machine.",
)
PipelineOption = Annotated[
    Pipeline | None,
    typer.Option(help="default: map_only for a spec with a champion, else national_map"),
]


@app.command("compile")
def compile_pipelines(
    pipeline: Annotated[
        Pipeline | None, typer.Option(help="only this one; default: every pipeline")
    ] = None,
    into: Annotated[Path, typer.Option(help="folder for the files")] = Path(),
    manifests: Annotated[
        bool,
        typer.Option(
            "--manifests",
            help="also `<pipeline>.manifests.yaml`: Pipeline and PipelineVersion to "
            "`kubectl apply`",
        ),
    ] = False,
    namespace: Annotated[
        str | None,
        typer.Option(help="of these resources: that of Kubeflow Pipelines; default: kubectl's"),
    ] = None,
) -> None:
    """Write the YAML that the Kubeflow UI takes.

    TERRAFINE_IMAGE names the image of the steps. Steps that infer ask for a GPU where that is a
    -cuda one; TERRAFINE_GPUS says otherwise.

    Example: `TERRAFINE_IMAGE=registry.example/terrafine:0.1.0 terrafine pipeline compile
    --manifests --namespace kubeflow --into pipelines-yaml`
    """
    into.mkdir(parents=True, exist_ok=True)
    for one in [pipeline] if pipeline else list(Pipeline):
        typer.echo(write_yaml(one, into / f"{one}.yaml"))
        if manifests:
            typer.echo(write_manifests(one, into / f"{one}.manifests.yaml", namespace))


@app.command()
def submit(
    spec: SpecArgument,
    host: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="URL of the Kubeflow Pipelines API")
    ],
    pipeline: PipelineOption = None,
    data: Annotated[str, typer.Option(help="folder on the cluster")] = "/work/data",
    workdir: Annotated[
        str, typer.Option(help="folder on the cluster; {name}: the spec's name")
    ] = "/work/runs/{name}",
    champion: Annotated[str, typer.Option(help="model to map with (map_only)")] = AS_IN_SPEC,
    region: Annotated[str, typer.Option(help="file of polygons to map")] = AS_IN_SPEC,
    release: Annotated[str, typer.Option(help="name of the map release")] = AS_IN_SPEC,
    experiment: Annotated[str, typer.Option(help="that shows the run in the UI")] = "terrafine",
    run_name: Annotated[str | None, typer.Option(help="default: the spec's name")] = None,
    namespace: Annotated[
        str | None, typer.Option(help="of the run, where Kubeflow has several users")
    ] = None,
    service_account: Annotated[
        str, typer.Option(help="of the pods; it must be allowed to make RayJobs")
    ] = "terrafine-pipeline",
    as_json: JsonOption = False,
) -> None:
    """Send a spec to Kubeflow and start a run of it.

    The spec travels as text; its data must be on the cluster. TERRAFINE_KFP_TOKEN is sent as a
    bearer token where it is set.

    Example: `terrafine pipeline submit examples/zion.yaml --host https://kubeflow.example/pipeline
    --data /work/data/zion`
    """
    changes = {"champion": champion, "map.region": region, "publish.release": release}
    chosen = {key: value for key, value in changes.items() if value != AS_IN_SPEC}
    loaded = load_spec(spec, chosen)
    which = pipeline or pipeline_of(loaded.champion)
    with tempfile.TemporaryDirectory() as folder, _reached(host):
        package = write_yaml(which, Path(folder) / f"{which}.yaml")
        run = _client(host, namespace).create_run_from_pipeline_package(
            str(package),
            arguments={"spec": loaded.to_yaml(), "data": data, "workdir": workdir},
            run_name=run_name or loaded.name,
            experiment_name=experiment,
            namespace=namespace,
            enable_caching=False,
            service_account=service_account,
        )
    url = f"{host.rstrip('/')}/#/runs/details/{run.run_id}"
    done = {"run": run.run_id, "pipeline": str(which), "url": url}
    typer.echo(json.dumps(done, indent=2) if as_json else f"{which} of {loaded.name}: {url}")


@app.command("run-local")
def run_local(
    spec: SpecArgument,
    pipeline: PipelineOption = None,
    data: DataOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a pipeline on this machine, by kfp's local runner; `terrafine run` does the default one.

    Exit codes: 0 done, 3 refused by the gate, 1 error.

    Example: `terrafine pipeline run-local SPEC --pipeline retrain`
    """
    from terrafine.cli.local_pipeline import run_pipeline

    job = Job.open(spec, data=data, workdir=workdir)
    which = pipeline or pipeline_of(job.spec.champion)
    run_pipeline(job, which, quiet=as_json)
    finish(job, released(job, "deploy" if which is Pipeline.retrain else "publish"), as_json)


def pipeline_of(champion: str | None) -> Pipeline:
    """The pipeline for a spec that names a champion to map with, or none."""
    return Pipeline.national_map if champion is None else Pipeline.map_only


def defined(pipeline: Pipeline) -> Any:
    """The definition of a pipeline; kfp takes a while to import."""
    return getattr(importlib.import_module(f"pipelines.{pipeline}"), pipeline)


def write_yaml(pipeline: Pipeline, path: Path) -> Path:
    """Compile a pipeline into the file that the Kubeflow UI and API take."""
    from kfp import compiler

    with _quiet():
        compiler.Compiler().compile(defined(pipeline), str(path))
    return path


def write_manifests(pipeline: Pipeline, path: Path, namespace: str | None = None) -> Path:
    """Compile a pipeline into Pipeline and PipelineVersion resources; a version is for ever."""
    from kfp import compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    name = pipeline.replace("_", "-")
    options = KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_version_name=f"{name}-{__version__}",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    with _quiet():
        compiler.Compiler().compile(
            defined(pipeline),
            str(path),
            kubernetes_manifest_options=options,
            kubernetes_manifest_format=True,
        )
    resources = list(yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader))
    for resource in resources:
        resource["metadata"]["labels"] = _LABELS
    path.write_text(yaml.safe_dump_all(resources), encoding="utf-8")
    return path


def _client(host: str, namespace: str | None) -> Any:
    from kfp import Client

    where = {} if namespace is None else {"namespace": namespace}
    return Client(host=host, existing_token=os.environ.get(TOKEN), **where)


@contextlib.contextmanager
def _reached(host: str) -> Iterator[None]:
    """PipelineError where the API says no or nothing; kfp's own links are not printed."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        with contextlib.redirect_stdout(io.StringIO()), _quiet():
            yield
    except ApiException as error:
        raise PipelineError(
            f"{host}: Kubeflow Pipelines refused the run ({error.status} {error.reason}: "
            f"{_message(error.body)}); check --host, --namespace and {TOKEN}"
        ) from error
    except (HTTPError, OSError) as error:
        raise PipelineError(
            f"{host}: no Kubeflow Pipelines API answers there ({type(error).__name__}); check "
            "--host and that it can be reached, for instance by `kubectl port-forward`"
        ) from error


def _message(body: Any) -> str:
    """What the API said, on one line."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        body = json.loads(body).get("message", body)
    return " ".join(str(body).split())[:300] or "no reason given"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without kfp's warnings about itself, and about an image whose name does not say "python"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
