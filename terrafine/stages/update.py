"""A map release brought up to date: no stage, because it trains nothing.

The spec is the one of the release with the new scenes added, so its stages before the map would
want to run again; the update takes the released model instead.
"""

from __future__ import annotations

import json
from pathlib import Path

from terrafine.errors import StageError
from terrafine.export import Release, read_release
from terrafine.mapping import MapOutcome, MapStore, RunRecord, release_record
from terrafine.stages.engine import Job
from terrafine.stages.map import Inputs, map_place, map_scenes, open_inputs, pixels_digest


def update_map(
    job: Job,
    base: str,
    *,
    model: Path | None = None,
    bundle: Path | None = None,
    begun: bool = False,
) -> MapOutcome:
    """Map what the map release ``base`` of the job's map store lacks.

    ``model``: folder of the model release that mapped it, default: looked for in the work
    directory; ``bundle``: its weights, which only ``map.predictor: torch`` needs; ``begun``: only
    go on with an update.
    StageError without them, MapStoreError when the map cannot take the scenes.
    """
    store = MapStore(map_place(job))
    record = release_record(store, base)
    graph, opened = released_inputs(job, record, model=model, bundle=bundle)
    if begun:
        run = store.run_name(model=record.model, spec=pixels_digest(job, graph), base=base)
        if run not in store.runs() or not store.missing(run):
            state = "is finished" if run in store.runs() else "was not begun"
            raise StageError(
                f"{store.path}: nothing to resume: the update of {base} to this spec {state}"
            )
    return map_scenes(job, *opened, graph_digest=graph, base=base)


def released_inputs(
    job: Job, record: RunRecord, *, model: Path | None = None, bundle: Path | None = None
) -> tuple[str, Inputs]:
    """SHA-256 of the graph that a run mapped with, and what :func:`open_inputs` opens of it.

    ``model``, ``bundle``: as in :func:`update_map`.
    """
    if job.spec.map.predictor == "torch" and bundle is None:
        raise StageError("map.predictor is torch: give the folder of the model's bundle, too")
    release = _release_of(record.model, job.workdir) if model is None else read_release(model)
    opened = open_inputs(job, release, release.graph("fp32"), bundle or release.folder)
    return release.info.graphs["fp32"].sha256, opened


def _release_of(model: str, workdir: Path) -> Release:
    for stage in ("export", "adopt"):
        for description in sorted(workdir.glob(f"{stage}/*/release/release.json")):
            if json.loads(description.read_text(encoding="utf-8")).get("model") == model:
                return read_release(description.parent)
    raise StageError(
        f"{workdir}: the model {model[:12]} that mapped this release is neither in "
        "export/*/release nor in adopt/*/release; name its folder (--model)"
    )
