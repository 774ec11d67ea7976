"""Mapping: every shard of a plan through a model into the store, resumable, in waves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from terrafine.errors import MapStoreError, ModelError
from terrafine.geometry import Window
from terrafine.legend import Legend
from terrafine.mapping.plan import Imagery, Plan
from terrafine.mapping.predictor import Predictor
from terrafine.mapping.shard import ShardJob, ShardResult
from terrafine.mapping.store import MapRun, MapStore
from terrafine.progress import Task, progress
from terrafine.spec import MappingSpec

log = logging.getLogger(__name__)

ShardRunner = Callable[[Iterable[Window], Callable[[Window], ShardResult]], Iterator[ShardResult]]
"""Computes shards somewhere, yields them as they finish, in any order, each at least once.

The callable it gets is a ``ShardJob``. A runner never touches the store: the driver writes, so a
worker that dies has written nothing, and no two writers can meet in one shard.
"""


@dataclass(frozen=True)
class MapOutcome:
    """What a call of :func:`map_all` did. ``snapshot`` is the run's newest state."""

    run: str
    snapshot: str
    shards: int
    computed: int

    @property
    def resumed(self) -> int:
        """Shards that were there already."""
        return self.shards - self.computed


def in_sequence(
    shards: Iterable[Window], compute: Callable[[Window], ShardResult]
) -> Iterator[ShardResult]:
    """The runner for one machine: one shard after the other."""
    return map(compute, shards)


def map_all(
    path: Path,
    imagery: Mapping[str, Imagery],
    predictor: Predictor,
    *,
    spec: MappingSpec,
    legend: Legend,
    scenes: Iterable[str],
    model_digest: str,
    spec_digest: str,
    run: ShardRunner = in_sequence,
) -> MapOutcome:
    """Map all zones into the store at ``path`` (made if absent), on the branch of this run.

    Parameters: ``imagery`` zone -> mosaic; ``scenes`` all scene names in the spec's order;
    ``spec_digest`` must cover everything but the model that pixels depend on: the sections
    ``imagery``, ``map`` and ``legend`` and the data files. The same digests resume the same run;
    shards that it has committed are not computed again.
    Raises MapStoreError (store of another layout, runner that left shards out), ModelError
    (predictor for another window), OSError from the disk. What was committed stays.
    """
    if predictor.window != spec.window:
        raise ModelError(
            f"the model takes windows of {predictor.window} pixels, but map.core + 2 map.halo is "
            f"{spec.window}; export it again for this spec"
        )
    plans = [Plan.of(mosaic, spec) for mosaic in imagery.values()]
    store = MapStore.open_for(path, plans, legend)
    with store.run(
        plans,
        model=model_digest,
        spec=spec_digest,
        scenes=scenes,
        mapping=spec.model_dump(mode="json"),
    ) as target:
        total, already = len(target.planned), len(target.planned & target.done)
        if already:
            log.info("%s: resuming, %d of %d shards are there", target.name, already, total)
        with progress("map", total=total, unit="shard") as task:
            if already:
                task.advance(already)
            for plan in plans:
                job = ShardJob(imagery[plan.zone], predictor, spec, legend)
                _map_zone(target, plan.zone, job, run, task)
    return MapOutcome(target.name, store.snapshot(target.name), total, total - already)


def _map_zone(target: MapRun, zone: str, job: ShardJob, run: ShardRunner, task: Task) -> None:
    for result in run(target.todo(zone), job):
        if target.write_shard(zone, result):
            task.advance()
        if target.pending >= job.spec.wave:
            target.commit()
    target.commit()
    left = target.todo(zone)
    if left:
        raise MapStoreError(
            f"zone {zone}: {len(left)} shards were not delivered, the first at row {left[0].row}, "
            f"column {left[0].col}; run the map again, it resumes"
        )
