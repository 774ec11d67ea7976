"""deploy: an exported release -> the champion of the model servers that the spec names.

Done once per release and ``serve`` section: who rolled it back since is not overruled by a pipeline
that is run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from terrafine.errors import StageError
from terrafine.progress import warn
from terrafine.stages.adopt import made_release
from terrafine.stages.engine import Job, Manifest, Outcome, Stage


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    serve = job.spec.serve
    missing = [key for key in ("server", "repository") if getattr(serve, key) is None]
    if missing:
        why = f"the spec names no {' and no '.join(f'serve.{key}' for key in missing)}"
        warn(f"deploy: {why}, so no model server gets this release")
        return Outcome({}, {"deployed": "no", "why": why})
    if job.deployer is None:
        raise StageError(
            f"serve.server {serve.server}: this process has no client for model servers; run "
            "`terrafine run SPEC` or the pipeline"
        )
    release = made_release(job, needed["export"])
    return Outcome({}, {"deployed": "yes", **job.deployer(release, serve)})


DEPLOY = Stage(name="deploy", needs=("export",), sections=("serve",), work=_work)
