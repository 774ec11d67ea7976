"""What the component bodies share: run one stage and write its manifest where KFP wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.engines import on_engines
from serving.rayjob.stages import launch_stage
from terrafine.stages import ENGINE, Job, Manifest


def run_stage(
    name: str, spec: str, data: str, workdir: str, upstream: Sequence[str], manifest: str
) -> Manifest:
    """Run stage ``name`` of the spec given as YAML text.

    ``upstream``: files holding the manifests of earlier stages; ``manifest``: file to write. On a
    cluster with templates for them, training, pruning and mapping are done by a RayJob first, and
    are found done here.
    """
    job = on_engines(Job.from_text(spec, data=data, workdir=workdir))
    before = [Manifest.read(Path(path)) for path in upstream]
    launch_stage(job, name, before)
    done = ENGINE.run(job, name, before)
    Path(manifest).write_text(done.model_dump_json(indent=2), encoding="utf-8")
    return done


def numbers(done: Manifest) -> dict[str, float]:
    """The figures of a stage that a metrics page can plot."""
    return {k: float(v) for k, v in done.metrics.items() if not isinstance(v, str)}


def output(done: Manifest, workdir: str, name: str) -> Path:
    """Path of a stage's output."""
    return Path(workdir) / done.outputs[name]
