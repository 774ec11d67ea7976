"""A RayJob from a template of the cluster's: the launcher fills in what only a run knows."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from terrafine import __version__
from terrafine.errors import StageError

TEMPLATES = "TERRAFINE_RAYJOBS"
PIPELINE_JOB = "TERRAFINE_PIPELINE_JOB"
STAGE = "terrafine.io/stage"
DIGEST = "terrafine.io/digest"
_RUN = "terrafine.io/pipeline-job"
# not the overlay's, by which its leftovers are deleted
_PART_OF = {"app.kubernetes.io/part-of": "terrafine-runs"}
_DEADLINE = "terrafine.io/deadline-seconds"
_WEEK = 7 * 24 * 3600.0

# stage -> template and command
_COMMANDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "train-preliminary": ("train", ("train", "--preliminary")),
    "train": ("train", ("train",)),
    "prune": ("prune", ("prune",)),
    "map": ("map", ("map", "run")),
}
STAGES = tuple(_COMMANDS)


@dataclass(frozen=True)
class Order:
    """What a RayJob is to do: a stage of a spec, over folders that its pods see alike.

    ``spec``: YAML text; ``run``: id of the pipeline's run, empty where there is none.
    """

    stage: str
    spec: str
    data: str
    workdir: str
    run: str = ""

    @property
    def digest(self) -> str:
        """The same for the same order, by the same version of terrafine."""
        parts = [__version__, self.stage, self.spec, self.data, self.workdir, self.run]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Of the RayJob: at most 47 characters, of which KubeRay makes longer names."""
        run = re.sub(r"[^a-z0-9]", "", self.run.lower())[:8]
        return "-".join(part for part in ("terrafine", self.stage, run, self.digest[:8]) if part)

    @property
    def spec_file(self) -> Path:
        """Where the spec's text is put for the RayJob."""
        return Path(self.workdir) / "specs" / f"{self.digest}.yaml"

    @property
    def entrypoint(self) -> str:
        """The command line that does the stage."""
        _, (command, *options) = _COMMANDS[self.stage]
        folders = ["--data", self.data, "--workdir", self.workdir]
        words = ["terrafine", "--log-level", "info", command, *options, str(self.spec_file)]
        return shlex.join(words + folders)


def read_template(folder: Path, stage: str) -> dict[str, Any]:
    """The template for a stage; StageError where it is none."""
    path = folder / f"{_COMMANDS[stage][0]}.yaml"
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise StageError(
            f"{path}: no RayJob template can be read there ({reason}); mount the ConfigMap "
            f"terrafine-rayjobs, or unset {TEMPLATES} to do the stage in this process"
        ) from error
    template: dict[str, Any] = found if isinstance(found, dict) else {}
    kind = f"{template.get('apiVersion')} {template.get('kind')}"
    if kind != "ray.io/v1 RayJob" or not isinstance(template.get("spec"), dict):
        raise StageError(f"{path}: is {kind}, not a ray.io/v1 RayJob with a spec; replace it")
    return template


def filled(template: Mapping[str, Any], order: Order, owners: Sequence[Mapping[str, Any]]) -> Any:
    """The template with name, labels, owners and entrypoint of an order."""
    manifest = copy.deepcopy(dict(template))
    given = manifest.get("metadata") or {}
    own = {**_PART_OF, STAGE: order.stage, DIGEST: order.digest}
    labels = {**(given.get("labels") or {}), **own}
    if order.run:
        labels[_RUN] = re.sub(r"[^A-Za-z0-9_.-]", "-", order.run)[:63].strip("-_.")
    manifest["metadata"] = {
        "name": order.name,
        "labels": labels,
        **({"annotations": given["annotations"]} if given.get("annotations") else {}),
        **({"ownerReferences": list(owners)} if owners else {}),
    }
    manifest["spec"]["entrypoint"] = order.entrypoint
    return manifest


def deadline_of(manifest: Mapping[str, Any]) -> float:
    """Seconds after which nobody waits for the RayJob any longer, queue and all."""
    said = (manifest["metadata"].get("annotations") or {}).get(_DEADLINE, str(_WEEK))
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise StageError(f"annotation {_DEADLINE} {said!r}: give seconds above 0")
    return seconds


def this_pod() -> list[dict[str, Any]]:
    """This pod as an owner, by ``POD_NAME`` and ``POD_UID``; nothing where they are not set."""
    name, uid = os.environ.get("POD_NAME"), os.environ.get("POD_UID")
    if not name or not uid:
        return []
    return [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]
