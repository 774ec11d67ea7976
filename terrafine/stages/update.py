"""A map release brought up to date with new scenes: no stage, because it trains nothing.

The spec is the one of the release with the new scenes added, so its stages before the map would
want to run again; the update takes the released model instead.
"""

from __future__ import annotations

import json
from pathlib import Path

from terrafine.errors import StageError
from terrafine.export import Release, read_release
from terrafine.mapping import MapOutcome, MapStore, release_record
from terrafine.stages.engine import Job
from terrafine.stages.map import map_place, map_scenes, open_inputs


def update_map(
    job: Job, base: str, *, model: Path | None = None, bundle: Path | None = None
) -> MapOutcome:
    """Map what the job's new scenes change in the map release ``base`` of its map store.

    ``model``: folder of the model release that mapped it, default: looked for in the work
    directory; ``bundle``: its weights, which only ``map.predictor: torch`` needs.
    StageError without them, MapStoreError when the map cannot take the scenes.
    """
    record = release_record(MapStore(map_place(job)), base)
    if job.spec.map.predictor == "torch" and bundle is None:
        raise StageError("map.predictor is torch: give the folder of the model's bundle, too")
    release = _release_of(record.model, job.workdir) if model is None else read_release(model)
    opened = open_inputs(job, release, release.graph("fp32"), bundle or release.folder)
    return map_scenes(job, *opened, graph_digest=release.info.graphs["fp32"].sha256, base=base)


def _release_of(model: str, workdir: Path) -> Release:
    for description in sorted(workdir.glob("export/*/release/release.json")):
        if json.loads(description.read_text(encoding="utf-8")).get("model") == model:
            return read_release(description.parent)
    raise StageError(
        f"{workdir}: the model {model[:12]} that mapped this release is not in export/*/release; "
        "name its folder (--model)"
    )
