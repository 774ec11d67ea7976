"""map: every shard of every zone through the exported graph into the map store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from terrafine.errors import MapStoreError
from terrafine.mapping import OnnxPredictor, map_all, open_map
from terrafine.raster import open_mosaics
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, source_digests
from terrafine.stages.label import scene_files

STORE = "map.icechunk"


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    spec = job.spec
    predictor = OnnxPredictor(job.output(needed["export"], "graph"), threads=spec.map.threads)
    mosaics = open_mosaics(spec.imagery, job.data)
    for mosaic in mosaics.values():
        predictor.require(legend=spec.resolve_legend(), fill=mosaic.fill)
    done = map_all(
        job.workdir / STORE,
        mosaics,
        predictor,
        spec=spec.map,
        legend=spec.resolve_legend(),
        scenes=[scene.name for scene in spec.imagery.scenes],
        model_digest=predictor.info.model,
        spec_digest=_pixels_digest(job),
    )
    return Outcome(
        {"store": job.workdir / STORE},
        {
            "run": done.run,
            "snapshot": done.snapshot,
            "shards": done.shards,
            "resumed": done.resumed,
        },
    )


def _pixels_digest(job: Job) -> str:
    """Digest of all that the pixels depend on beside the model, so that a run with another gate
    or training of the same outcome resumes this one."""
    parts = [job.spec.digest("legend", "imagery", "map"), *source_digests(job, MAP).values()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _result_exists(job: Job, manifest: Manifest) -> bool:
    """The store lies outside the stage's folder and may have been deleted."""
    try:
        open_map(job.workdir / STORE).snapshot(str(manifest.metrics["run"]))
    except MapStoreError:
        return False
    return True


MAP = Stage(
    name="map",
    needs=("export",),
    sections=("imagery", "map"),
    files=scene_files,
    work=_work,
    resumable=True,
    result_exists=_result_exists,
)
