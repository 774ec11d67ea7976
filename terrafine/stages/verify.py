"""A finished map looked at again: are its pixels what its model says of its scenes?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from terrafine.errors import StageError
from terrafine.mapping import (
    MapStore,
    RunRecord,
    ShardJob,
    ShardKey,
    ShardResult,
    Verified,
    release_record,
    renumbered,
    verify_sample,
)
from terrafine.raster import scene_names
from terrafine.stages.engine import Job, Manifest
from terrafine.stages.map import Inputs, map_place, pixels_digest, stage_inputs
from terrafine.stages.update import released_inputs


def verify_map(
    job: Job, done: Manifest, needed: Mapping[str, Manifest], *, shards: int, seed: int
) -> Iterator[Verified]:
    """Compute a random sample of the shards of the job's own map again, and compare bytes."""
    store = MapStore(map_place(job))
    record = store.provenance(str(done.metrics["run"]))
    assert record is not None, "a run has its record from its first commit"
    return _verify(job, store, record, stage_inputs(job, needed), shards, seed)


def verify_release(
    job: Job,
    release: str,
    *,
    model: Path | None = None,
    bundle: Path | None = None,
    shards: int,
    seed: int,
) -> Iterator[Verified]:
    """The same of a release of the job's map store: of the shards that its own run mapped, not of
    those that an update shares with the release before.

    ``model``, ``bundle``: as in :func:`update_map`. StageError where the job's spec, data or
    version of terrafine are not those that made it.
    """
    store = MapStore(map_place(job))
    record = release_record(store, release)
    graph, opened = released_inputs(job, record, model=model, bundle=bundle)
    if pixels_digest(job, graph) != record.spec:
        raise StageError(
            f"{store.path}: release {release!r} was mapped from another spec, other data or by "
            "another version of terrafine; verify it with those"
        )
    return _verify(job, store, record, opened, shards, seed)


def _verify(
    job: Job, store: MapStore, record: RunRecord, opened: Inputs, shards: int, seed: int
) -> Iterator[Verified]:
    _, mosaics, open_predictor = opened
    predictor, spec = open_predictor(), job.spec
    imagery, _ = renumbered(mosaics, scene_names(mosaics), record.scenes, where=str(store.path))

    def compute(key: ShardKey) -> ShardResult:
        zone, window = key
        return ShardJob(imagery[zone], predictor, spec.map, spec.resolve_legend())(window)

    return verify_sample(store, record.run, compute, shards=shards, seed=seed)
