"""What a pipeline's form says -> the job that its steps carry out, checked before hours of work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from terrafine.errors import TerrafineError, explain
from terrafine.progress import announce
from terrafine.spec import AS_IN_SPEC, MapSpec, load_spec, parse_spec
from terrafine.stages.assess import open_reference
from terrafine.stages.engine import Engine, Job
from terrafine.stages.map import check_store


def prepared(
    engine: Engine, spec: str, *, data: str, workdir: str, overrides: Mapping[str, str]
) -> Job:
    """The job that the fields of a form describe, once it is :func:`require_ready`.

    ``spec``: YAML text, or the path of a ``.yaml`` file; ``workdir``: ``{name}`` in it stands for
    the spec's name; ``overrides``: dotted key of the spec -> its value, or ``AS_IN_SPEC``.
    TerrafineError or OSError, announced for whoever watches, where that cannot work.
    """
    try:
        found = _spec(spec, {key: v for key, v in overrides.items() if v != AS_IN_SPEC})
        root, results = Path(data).resolve(), Path(workdir.replace("{name}", found.name)).resolve()
        job = Job(found, root, results)
        require_ready(engine, job)
    except (TerrafineError, OSError) as error:
        announce(stage="prepare", state="failed", error=explain(error))
        raise
    return job


def require_ready(engine: Engine, job: Job) -> None:
    """TerrafineError or OSError when a file is missing that the run will want, the reference
    cannot be read, or the map store was made for another map."""
    engine.digests(job, "publish")
    if job.spec.assess is not None:
        open_reference(job.spec, job.data)
    check_store(job)


def _spec(given: str, changes: Mapping[str, str]) -> MapSpec:
    name = given.strip()
    if "\n" in name or not name.endswith((".yaml", ".yml")):
        return parse_spec(given, where="spec", changes=changes)
    return load_spec(Path(name), changes)
