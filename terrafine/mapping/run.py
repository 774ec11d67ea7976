"""Mapping: every shard of a plan through a model into the store, resumable, in waves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import icechunk

from terrafine.errors import MapStoreError, ModelError
from terrafine.legend import Legend
from terrafine.mapping.place import Place
from terrafine.mapping.plan import Imagery, plan_all
from terrafine.mapping.predictor import Predictor, Served, engine_errors
from terrafine.mapping.reader import UNKNOWN, Origin
from terrafine.mapping.store import MapStore
from terrafine.mapping.update import Base, plan_update
from terrafine.mapping.watch import MapObserver
from terrafine.mapping.waves import MapRun
from terrafine.mapping.write import ShardKey, ShardReceipt, ShardWriter
from terrafine.raster import Region
from terrafine.spec import MappingSpec

log = logging.getLogger(__name__)

# seconds that a written shard waits for its wave to fill: on slow machines a wave takes hours
_LONGEST_WAIT = 600.0

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
    origin: Origin = UNKNOWN,
    observer: MapObserver | None = None,
) -> MapOutcome:
    """Map all zones into the store at ``path`` (made if absent), on the branch of this run.

    Parameters: ``imagery`` zone -> mosaic; ``open_predictor`` is called here and in every worker,
    so ``run`` may have to pickle it; ``at_once`` windows are asked about at the same time (more
    than one only of a server); ``scenes`` all scene names in the spec's order;
    ``spec_digest`` must cover everything but the model that pixels depend on: the sections
    ``imagery``, ``map`` and ``legend`` and the data files; ``region`` leaves out the shards
    outside it; with a ``base`` only what it lacks is mapped (:func:`plan_update`); ``origin`` is
    kept for later updates. The same digests resume the same run; shards that it has committed are
    not computed again.
    Raises MapStoreError (store of another layout, runner that left shards out), ModelError
    (predictor for another window, or one that fails), OSError from the disk. Shards that were
    finished stay, whatever ends the map.
    """
    with engine_errors("the model cannot be opened"):
        predictor = open_predictor()
    if predictor.window != spec.window:
        raise ModelError(
            f"the model takes windows of {predictor.window} pixels, but map.core + 2 map.halo is "
            f"{spec.window}; export it again for this spec"
        )
    stale: frozenset[ShardKey] = frozenset()
    if base is None:
        plans = plan_all(imagery, spec, region)
        store = MapStore.open_for(path, plans, legend)
    else:
        store = MapStore(path)
        update = plan_update(
            store, base, imagery,
            spec=spec, legend=legend, model=model_digest, scenes=scenes, region=region,
            origin=origin,
        )  # fmt: skip
        plans, imagery, scenes = update.plans, update.imagery, update.scenes
        origin, stale = update.origin, update.stale
    with store.run(
        plans,
        model=model_digest,
        spec=spec_digest,
        scenes=scenes,
        mapping=spec.model_dump(mode="json"),
        base=base.release if base else None,
        origin=origin,
        stale=stale,
    ) as target:
        total, already = len(target.planned), len(target.planned & target.done.keys())
        if already:
            log.info("%s: resuming, %d of %d shards are there", target.name, already, total)
        writer = ShardWriter(target.target, imagery, open_predictor, spec, legend, at_once)
        # the one that is open already, where the work is done in this process; a runner that has
        # it done elsewhere forgets it
        vars(writer)["predictor"] = predictor
        served = predictor if isinstance(predictor, Served) else None
        del predictor
        if observer is not None and served is not None:
            observer.served(served)
        try:
            _Waves(target, spec.wave, observer).take(run(target.todo(), writer))
        except (KeyboardInterrupt, SystemExit):
            if served is not None:
                served.give_up()
            raise
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
    """Receipts into commits, told to whoever watches.

    A wave is committed when it is full, or with the next receipt once its first has waited long.
    """

    def __init__(self, target: MapRun, size: int, observer: MapObserver | None) -> None:
        self._target, self._size, self._observer = target, size, observer
        self._since = time.monotonic()
        if observer is not None:
            observer.started(target.planned, target.planned & target.done.keys())

    def take(self, receipts: Receipts) -> None:
        """Commit every wave, and what is there of one when the work is broken off."""
        try:
            with closing(receipts):
                for receipt in receipts:
                    self._accept(receipt)
                    if self._target.pending >= self._size or self._waited_long():
                        self._commit()
        except BaseException:
            # the disk may be what broke it off: the first error is the one to be told
            with suppress(MapStoreError, icechunk.IcechunkError):
                self._commit()
            raise
        self._commit()

    def _accept(self, receipt: ShardReceipt) -> None:
        if not self._target.pending:
            self._since = time.monotonic()
        if self._target.accept(receipt) and self._observer is not None:
            self._observer.shard(receipt)

    def _waited_long(self) -> bool:
        return time.monotonic() - self._since >= _LONGEST_WAIT

    def _commit(self) -> None:
        shards, before = self._target.pending, time.monotonic()
        self._target.commit()
        if self._observer is not None and shards:
            self._observer.commit(shards, time.monotonic() - before)
