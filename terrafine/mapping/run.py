"""Mapping: every shard of a plan through a model into the store, resumable, in waves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import icechunk

from terrafine.errors import MapStoreError, ModelError, TerrafineError
from terrafine.legend import Legend
from terrafine.mapping.plan import Imagery, plan_all
from terrafine.mapping.predictor import Predictor, Served
from terrafine.mapping.reader import Place
from terrafine.mapping.store import MapStore
from terrafine.mapping.update import Base, plan_update
from terrafine.mapping.watch import MapObserver
from terrafine.mapping.waves import MapRun
from terrafine.mapping.write import ShardKey, ShardReceipt, ShardWriter
from terrafine.raster import Region
from terrafine.spec import MappingSpec

log = logging.getLogger(__name__)

WriteShard = Callable[[ShardKey], ShardReceipt]
"""What a runner calls: a ``ShardWriter``, which can be pickled."""

Receipts = Generator[ShardReceipt, None, None]
ShardRunner = Callable[[Sequence[ShardKey], WriteShard], Receipts]
"""Has shards computed and written somewhere, yields receipts in any order, each at least once.

It is closed when its work is not wanted any more. Only the driver commits: what a worker that dies
has written is never seen, and no two commits can meet.
"""


@dataclass(frozen=True)
class MapOutcome:
    """What a call of :func:`map_all` did.

    ``snapshot``: the run's newest state; ``mapped``, ``explained``: pixels with a class, and
    without one because no scene has data there; ``unreadable``: scene -> why.
    """

    run: str
    snapshot: str
    shards: int
    computed: int
    mapped: int
    explained: int
    unreadable: Mapping[str, str]

    @property
    def resumed(self) -> int:
        """Shards that were there already."""
        return self.shards - self.computed


def in_sequence(shards: Iterable[ShardKey], write: WriteShard) -> Receipts:
    """The runner for one process: one shard after the other."""
    yield from map(write, shards)


def map_all(
    path: Place,
    imagery: Mapping[str, Imagery],
    open_predictor: Callable[[], Predictor],
    *,
    spec: MappingSpec,
    legend: Legend,
    scenes: Iterable[str],
    model_digest: str,
    spec_digest: str,
    region: Region | None = None,
    run: ShardRunner = in_sequence,
    at_once: int = 1,
    base: Base | None = None,
    observer: MapObserver | None = None,
) -> MapOutcome:
    """Map all zones into the store at ``path`` (made if absent), on the branch of this run.

    Parameters: ``imagery`` zone -> mosaic; ``open_predictor`` is called here and in every worker,
    so ``run`` may have to pickle it; ``at_once`` windows are asked about at the same time (more
    than one only of a server); ``scenes`` all scene names in the spec's order;
    ``spec_digest`` must cover everything but the model that pixels depend on: the sections
    ``imagery``, ``map`` and ``legend`` and the data files; ``region`` leaves out the shards
    outside it; with a ``base`` only what its new scenes change is mapped. The same digests resume
    the same run; shards that it has committed are not computed again.
    Raises MapStoreError (store of another layout, runner that left shards out), ModelError
    (predictor for another window), OSError from the disk. What was committed stays.
    """
    predictor = open_predictor()
    if predictor.window != spec.window:
        raise ModelError(
            f"the model takes windows of {predictor.window} pixels, but map.core + 2 map.halo is "
            f"{spec.window}; export it again for this spec"
        )
    if base is None:
        plans = plan_all(imagery, spec, region)
        store = MapStore.open_for(path, plans, legend)
    else:
        store = MapStore(path)
        update = plan_update(
            store, base, imagery,
            spec=spec, legend=legend, model=model_digest, scenes=scenes, region=region,
        )  # fmt: skip
        plans, imagery, scenes = update.plans, update.imagery, update.scenes
    with store.run(
        plans,
        model=model_digest,
        spec=spec_digest,
        scenes=scenes,
        mapping=spec.model_dump(mode="json"),
        base=base.release if base else None,
    ) as target:
        total, already = len(target.planned), len(target.planned & target.done.keys())
        if already:
            log.info("%s: resuming, %d of %d shards are there", target.name, already, total)
        writer = ShardWriter(target.target, imagery, open_predictor, spec, legend, at_once)
        # the one that is open already, where the work is done in this process
        vars(writer)["predictor"] = predictor
        if observer is not None and isinstance(predictor, Served):
            observer.served(predictor)
        _Waves(target, spec.wave, observer).take(run(target.todo(), writer))
        account = target.account()
    return MapOutcome(
        run=target.name,
        snapshot=store.snapshot(target.name),
        shards=total,
        computed=total - already,
        mapped=account.mapped,
        explained=account.explained,
        unreadable=target.unreadable,
    )


class _Waves:
    """Receipts into commits, told to whoever watches."""

    def __init__(self, target: MapRun, size: int, observer: MapObserver | None) -> None:
        self._target, self._size, self._observer = target, size, observer
        if observer is not None:
            observer.started(target.planned, target.planned & target.done.keys())

    def take(self, receipts: Receipts) -> None:
        """Commit every wave, and what is there of one when the work is broken off."""
        try:
            with closing(receipts):
                for receipt in receipts:
                    if self._target.accept(receipt) and self._observer is not None:
                        self._observer.shard(receipt)
                    if self._target.pending >= self._size:
                        self._commit()
        except (TerrafineError, KeyboardInterrupt, SystemExit):
            # the disk may be what broke it off: the first error is the one to be told
            with suppress(MapStoreError, icechunk.IcechunkError):
                self._commit()
            raise
        self._commit()

    def _commit(self) -> None:
        shards, before = self._target.pending, time.monotonic()
        self._target.commit()
        if self._observer is not None and shards:
            self._observer.commit(shards, time.monotonic() - before)
