"""map: every shard of every zone through the exported graph into the map store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from terrafine import __version__
from terrafine.errors import MapStoreError, StageError
from terrafine.export import Release
from terrafine.mapping import (
    Base,
    MapOutcome,
    MapStore,
    MapWatch,
    OnnxPredictor,
    Origin,
    Place,
    Predictor,
    is_map_store,
    map_all,
    open_map,
    plan_all,
    release_record,
    windows_at_once,
)
from terrafine.raster import (
    Mosaic,
    Region,
    catalogue_stamps,
    open_mosaics,
    scene_names,
    unreadable_scenes,
)
from terrafine.spec import MapSpec
from terrafine.stages.adopt import made_release, release_stage
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, file_digest, source_digests
from terrafine.stages.label import scene_files
from terrafine.telemetry import MappingMetrics, run_port, serve

STORE = "map.icechunk"

# keys of `imagery.catalogue` that say which scenes there are, and not what becomes of them
_WHICH_SCENES = {"source": True, "pattern": True, "dates": True, "region": True}
# of `serve`: what a model server runs in place of the graph that was gated
_SERVED = ("variant", "tensorrt")

# scene -> why it could not be read by this run
_UNREADABLE = "unreadable.json"


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    graph = str(needed[release_stage(job.spec)].metrics["graph"])
    done = map_scenes(job, *stage_inputs(job, needed), graph_digest=graph)
    (folder / _UNREADABLE).write_text(json.dumps(done.unreadable, indent=1))
    outside = job.spec.map.storage
    return Outcome(
        {**({} if outside else {"store": job.workdir / STORE}), "unreadable": Path(_UNREADABLE)},
        {
            **({"store": outside} if outside else {}),
            "run": done.run,
            "snapshot": done.snapshot,
            "shards": done.shards,
            "resumed": done.resumed,
            "pixels_mapped": done.mapped,
            "pixels_without_data": done.explained,
            "unreadable_scenes": len(done.unreadable),
        },
    )


def map_scenes(
    job: Job,
    model: str,
    mosaics: Mapping[str, Mosaic],
    open_predictor: Callable[[], Predictor],
    *,
    graph_digest: str,
    base: str | None = None,
) -> MapOutcome:
    """Map what :func:`open_inputs` has found into the job's map store.

    With the map release ``base`` only what it lacks is mapped: where there are scenes that it did
    not have, could not read or had other files of, and where it was not mapped.
    """
    spec, place = job.spec, map_place(job)
    origin = Origin(_settings(spec), _stamps(job))
    with _measured(spec) as metrics, MapWatch(metrics) as watch:
        done = map_all(
            place,
            mosaics,
            open_predictor,
            spec=spec.map,
            legend=spec.resolve_legend(),
            scenes=scene_names(mosaics),
            model_digest=model,
            spec_digest=pixels_digest(job, graph_digest),
            region=map_region(job),
            run=job.map_runner(spec.map, watch),
            at_once=windows_at_once(spec.map),
            base=None if base is None else _since(base, MapStore(place), mosaics, origin),
            origin=origin,
            observer=watch,
        )
    return replace(done, unreadable={**unreadable_scenes(mosaics), **done.unreadable})


def _since(base: str, store: MapStore, mosaics: Mapping[str, Mosaic], origin: Origin) -> Base:
    """The scenes that a map release does not show, or shows from other files."""
    record, before = release_record(store, base), store.stamps(base)
    replaced = {n for n, stamp in origin.stamps.items() if before.get(n, stamp) != stamp}
    shown = set(record.scenes) - set(store.unreadable(record.run)) - replaced
    new = set(scene_names(mosaics)) - shown
    parts = {zone: mosaic.only(new) for zone, mosaic in mosaics.items()}
    return Base(base, {zone: part for zone, part in parts.items() if part is not None})


Inputs = tuple[str, dict[str, Mosaic], Callable[[], Predictor]]


def stage_inputs(job: Job, needed: Mapping[str, Manifest]) -> Inputs:
    """As :func:`open_inputs`, of a run's own model or of the champion it took.

    ``needed``: the stages before the map. StageError when graph or release are not what was gated.
    """
    made = needed[release_stage(job.spec)]
    graph = job.output(made, "graph")
    if file_digest(graph) != made.metrics["graph"]:
        raise StageError(
            f"{graph}: changed since stage {made.stage} left it, so its gate no longer vouches for "
            f"it; delete {job.workdir / made.stage} and run `terrafine {made.stage} SPEC` again"
        )
    release = made_release(job, made)
    # an adopted release has no weights, and a spec that asks torch for them is refused
    bundle = job.output(needed["prune"], "model") if "prune" in needed else release.folder
    return open_inputs(job, release, graph, bundle)


def open_inputs(job: Job, release: Release, graph: Path, bundle: Path) -> Inputs:
    """Digest of the model whose graph was gated, the scenes that it fits, and how a worker opens
    the model."""
    mosaics = open_mosaics(job.spec.imagery, job.data)
    exact = OnnxPredictor(graph, threads=1)
    for mosaic in mosaics.values():
        exact.require(legend=job.spec.resolve_legend(), fill=mosaic.fill)
    return exact.info.model, mosaics, job.predictor(job.spec, release, bundle)


@contextmanager
def _measured(spec: MapSpec) -> Iterator[MappingMetrics]:
    """Metrics of a map, served meanwhile where the spec or the environment wants it."""
    registry, port = CollectorRegistry(), run_port(spec.map.metrics_port)
    model = spec.serve.name if spec.map.predictor == "triton" else None
    with serve(port, registry, key="map.metrics_port") if port else nullcontext():
        yield MappingMetrics(wave=spec.map.wave, registry=registry, model=model)


def require_begun(job: Job, needed: Mapping[str, Manifest]) -> None:
    """StageError unless the map of this spec and this model was begun in its store."""
    made = needed[release_stage(job.spec)]
    model = made_release(job, made).info.model
    place, runs = map_place(job), list[str]()
    if is_map_store(place):
        store, digest = MapStore(place), pixels_digest(job, str(made.metrics["graph"]))
        if store.run_name(model=model, spec=digest) in (runs := list(store.runs())):
            return
    raise StageError(
        f"{place}: there is nothing to resume: no map of this spec with model {model[:12]} was "
        f"begun here (runs: {', '.join(runs) or 'none'}); begin it with `terrafine map SPEC`"
    )


def check_store(job: Job) -> None:
    """MapStoreError when the work directory's map store was made for another grid, extent, shard
    or legend: better before the training than after it."""
    path = map_place(job)
    if is_map_store(path):
        mosaics = open_mosaics(job.spec.imagery, job.data)
        plans = plan_all(mosaics, job.spec.map, map_region(job))
        MapStore.open_for(path, plans, job.spec.resolve_legend())


def map_place(job: Job) -> Place:
    """Where the spec's map store is."""
    outside = job.spec.map.storage
    if outside is None:
        return job.workdir / STORE
    return outside if "://" in outside else Path(outside).resolve()


def map_region(job: Job) -> Region | None:
    """The region that the spec wants mapped, or None for all that has scenes."""
    name = job.spec.map.region
    return None if name is None else Region.read(name, job.data, key="map.region")


def _files(spec: MapSpec) -> list[str]:
    return [*scene_files(spec), *([spec.map.region] if spec.map.region else [])]


def pixels_digest(job: Job, graph_sha256: str) -> str:
    """Digest of all that the pixels depend on beside the model's weights, so that a run with
    another gate, or a training of the same outcome, resumes this one."""
    sections = job.spec.digest("legend", "imagery", "map", *_served(job.spec))
    parts = [__version__, graph_sha256, sections, *source_digests(job, MAP).values()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _served(spec: MapSpec) -> tuple[str, ...]:
    """Keys of the spec that say which graph a model server maps with."""
    return tuple(f"serve.{key}" for key in _SERVED) if spec.map.predictor == "triton" else ()


def _settings(spec: MapSpec) -> dict[str, Any]:
    """Key of the spec -> value, of all outside the section ``map`` that pixels depend on, but for
    which scenes there are."""
    exclude: Any = {"scenes": True, "on_unreadable": True, "catalogue": _WHICH_SCENES}
    imagery = spec.imagery.model_dump(mode="json", exclude=exclude)
    catalogue = imagery.pop("catalogue", None) or {}
    return {
        **{f"imagery.{key}": value for key, value in imagery.items()},
        **{f"imagery.catalogue.{key}": value for key, value in catalogue.items()},
        **{key: getattr(spec.serve, key.removeprefix("serve.")) for key in _served(spec)},
    }


def _stamps(job: Job) -> dict[str, str]:
    """Scene -> what changes when its files do, where that is known."""
    imagery = job.spec.imagery
    if imagery.catalogue is not None:
        return catalogue_stamps(imagery, job.data.resolve())
    files = source_digests(job, MAP)
    told = {s.name: f"{[files[file] for file in s.files]} {s.band_indexes}" for s in imagery.scenes}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in told.items()}


def _result_exists(job: Job, manifest: Manifest) -> bool:
    """The store lies outside the stage's folder and may have been deleted."""
    try:
        open_map(map_place(job)).snapshot(str(manifest.metrics["run"]))
    except MapStoreError:
        return False
    return True


MAP = Stage(
    name="map",
    needs=("export", "prune"),
    needs_with_champion=("adopt",),
    sections=("imagery", "map"),
    more_keys=_served,
    files=_files,
    work=_work,
    resumable=True,
    result_exists=_result_exists,
)
