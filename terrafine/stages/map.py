"""map: every shard of every zone through the exported graph into the map store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from terrafine import __version__
from terrafine.errors import MapStoreError, StageError
from terrafine.mapping import MapStore, OnnxPredictor, is_map_store, map_all, open_map, plan_all
from terrafine.raster import Region, open_mosaics, scene_names, unreadable_scenes
from terrafine.spec import MapSpec
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, file_digest, source_digests
from terrafine.stages.label import scene_files

STORE = "map.icechunk"

# scene -> why it could not be read by this run
_UNREADABLE = "unreadable.json"


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    spec = job.spec
    graph = job.output(needed["export"], "graph")
    sha256 = file_digest(graph)
    if sha256 != needed["export"].metrics["graph"]:
        raise StageError(
            f"{graph}: changed since it was exported, so its gate no longer vouches for it; delete "
            f"{graph.parent} and export again"
        )
    predictor = OnnxPredictor(graph, threads=spec.map.threads)
    mosaics = open_mosaics(spec.imagery, job.data)
    for mosaic in mosaics.values():
        predictor.require(legend=spec.resolve_legend(), fill=mosaic.fill)
    done = map_all(
        job.workdir / STORE,
        mosaics,
        predictor,
        spec=spec.map,
        legend=spec.resolve_legend(),
        scenes=scene_names(mosaics),
        model_digest=predictor.info.model,
        spec_digest=_pixels_digest(job, sha256),
        region=map_region(job),
    )
    unreadable = unreadable_scenes(mosaics)
    (folder / _UNREADABLE).write_text(json.dumps(unreadable, indent=1))
    return Outcome(
        {"store": job.workdir / STORE, "unreadable": Path(_UNREADABLE)},
        {
            "run": done.run,
            "snapshot": done.snapshot,
            "shards": done.shards,
            "resumed": done.resumed,
            "unreadable_scenes": len(unreadable),
        },
    )


def check_store(job: Job) -> None:
    """MapStoreError when the work directory's map store was made for another grid, extent, shard
    or legend: better before the training than after it."""
    path = job.workdir / STORE
    if is_map_store(path):
        mosaics = open_mosaics(job.spec.imagery, job.data)
        plans = plan_all(mosaics, job.spec.map, map_region(job))
        MapStore.open_for(path, plans, job.spec.resolve_legend())


def map_region(job: Job) -> Region | None:
    """The region that the spec wants mapped, or None for all that has scenes."""
    name = job.spec.map.region
    return None if name is None else Region.read(name, job.data, key="map.region")


def _files(spec: MapSpec) -> list[str]:
    return [*scene_files(spec), *([spec.map.region] if spec.map.region else [])]


def _pixels_digest(job: Job, graph_sha256: str) -> str:
    """Digest of all that the pixels depend on beside the model's weights, so that a run with
    another gate, or a training of the same outcome, resumes this one."""
    sections = job.spec.digest("legend", "imagery", "map")
    parts = [__version__, graph_sha256, sections, *source_digests(job, MAP).values()]
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
    files=_files,
    work=_work,
    resumable=True,
    result_exists=_result_exists,
)
