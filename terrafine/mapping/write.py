"""The worker's half of a run: it computes a shard, writes it, and hands the driver a receipt.

What a worker writes is a change to a fork of the run's Icechunk session: nobody can read it before
the driver has merged the fork and committed. A worker that dies, or whose receipt is dropped,
leaves chunks that belong to no map, which `terrafine map gc` removes.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from pydantic import BaseModel, ConfigDict

from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.legend import Legend
from terrafine.mapping.layout import FILLS, ZoneLayout
from terrafine.mapping.place import storage_errors
from terrafine.mapping.plan import Imagery, require_shard
from terrafine.mapping.predictor import Predictor, Served, engine_errors
from terrafine.mapping.shard import Looked, ShardResult, Stopwatch, compute_shard, margin_of
from terrafine.spec import MappingSpec

if TYPE_CHECKING:
    from terrafine.telemetry import RequestRecord

ShardKey = tuple[str, Window]


class ShardAccount(BaseModel):
    """What a shard holds: kept in the commit that made it readable.

    ``checksums``: BLAKE2b of each array's bytes; ``mapped``: pixels with a class; ``scenes``:
    number of a scene -> pixels from it, 0: pixels without data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checksums: dict[str, str]
    mapped: int
    scenes: dict[int, int]

    @classmethod
    def of(cls, result: ShardResult) -> ShardAccount:
        """The account of a finished shard."""
        return cls(
            checksums={name: checksum(getattr(result, name)) for name in FILLS},
            mapped=int(np.count_nonzero(result.landcover)),
            scenes=_counted(result.source),
        )

    @property
    def explained(self) -> int:
        """Pixels without a class because no scene has data there."""
        return self.scenes.get(0, 0)


@dataclass(frozen=True)
class ShardReceipt:
    """A shard that a worker has written; it counts once the driver has committed ``changes``.

    ``unreadable``: scene -> why this worker could not read it; ``seconds``: spent on it by step.
    """

    zone: str
    window: Window
    changes: bytes
    account: ShardAccount
    unreadable: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> ShardKey:
        """Which shard it is."""
        return self.zone, self.window


@dataclass(frozen=True)
class Target:
    """Where the workers of one run write: small, and can be pickled.

    ``fork``: an Icechunk session forked from the run's branch, pickled. One fork serves a whole
    run: every worker unpickles a copy of its own for every shard.
    """

    where: str
    fork: bytes
    zones: Mapping[str, ZoneLayout]

    def write(self, zone: str, result: ShardResult) -> ShardReceipt:
        """Write one whole shard; MapStoreError, before anything is written, for anything else."""
        layout = self.zones[zone]
        where = f"{self.where}, zone {zone}"
        require_shard(result.window, extent=layout.extent, shard=layout.shard, where=where)
        for name, (dtype, _) in FILLS.items():
            array_HW = getattr(result, name)
            if array_HW.shape != result.window.shape or array_HW.dtype != np.dtype(dtype):
                raise MapStoreError(
                    f"{where}: {name} of the shard at row {result.window.row}, column "
                    f"{result.window.col} is {array_HW.dtype} {array_HW.shape}, not {dtype} "
                    f"{result.window.shape}; nothing was written"
                )
        # from the driver, from which this worker has its code too
        session: Any = pickle.loads(self.fork)  # noqa: S301
        with storage_errors(self.where, "written"):
            group = zarr.open_group(session.store, path=zone, mode="r+")
            for name in FILLS:
                array = group[name]
                assert isinstance(array, zarr.Array)
                array[result.window.slices(layout.extent)] = getattr(result, name)
            changes = pickle.dumps(session)
        return ShardReceipt(zone, result.window, changes, ShardAccount.of(result))


@dataclass(frozen=True)
class ShardWriter:
    """Everything that a worker needs to map any shard of a run; can be pickled.

    ``open_predictor`` is called once in each worker; ``at_once``: windows asked about at the same
    time, more than one only of a server. While windows are inferred the next is read. Safe for
    threads: while one shard is inferred another may be read or written.
    """

    target: Target
    imagery: Mapping[str, Imagery]
    open_predictor: Callable[[], Predictor]
    spec: MappingSpec
    legend: Legend
    at_once: int = 1

    def __call__(self, key: ShardKey) -> ShardReceipt:
        """Compute and write one shard."""
        result, watch, unreadable = self.compute(key)
        with watch.measuring("write"):
            written = self.target.write(key[0], result)
        return ShardReceipt(
            written.zone, written.window, written.changes, written.account, unreadable,
            watch.seconds,
        )  # fmt: skip

    def compute(self, key: ShardKey) -> tuple[ShardResult, Stopwatch, dict[str, str]]:
        """A shard's arrays, the time they took, and the scenes that could not be read so far."""
        zone, window = key
        watch = Stopwatch()
        imagery = self.imagery[zone]
        result = compute_shard(
            window,
            imagery=imagery,
            predictor=self._turns,
            spec=self.spec,
            legend=self.legend,
            each=partial(self._shared, key),
            watch=watch,
        )
        return result, watch, dict(imagery.unreadable)

    def forget_predictor(self) -> None:
        """Let go of the model, where others do the work."""
        vars(self).pop("predictor", None)

    @property
    def failed_tries(self) -> Mapping[str, int]:
        """Cause -> tries of this process that model servers did not answer, and were repeated."""
        opened = vars(self).get("predictor")
        return opened.failed_tries if isinstance(opened, Served) else {}

    def answered(self) -> Sequence[RequestRecord]:
        """Requests of this process that model servers answered since the last call."""
        opened = vars(self).get("predictor")
        return opened.answered() if isinstance(opened, Served) else ()

    @cached_property
    def predictor(self) -> Predictor:
        """The model, opened when it is first needed in this process."""
        with engine_errors("a worker opens the model"):
            return self.open_predictor()

    @cached_property
    def _kept(self) -> _Kept:
        return _Kept()

    @cached_property
    def _turns(self) -> _Turns:
        return _Turns(self.predictor, threading.Semaphore(self.at_once))

    def _shared(
        self, key: ShardKey, look: Callable[[Window], Looked], cores: list[Window]
    ) -> Iterator[Looked]:
        """Look at the windows of a shard, but for those that the shard to its left has looked at.

        CLAHE needs those around a shard too: of 100 windows for a shard of 8192 pixels, 20 are
        shared with each neighbour. One shard is inferred after the other, while another is
        enhanced and written.
        """
        zone, shard = key
        right = Window(shard.row, shard.stop_col, *shard.shape)
        needed = right.buffered(margin_of(self.spec, self.legend))
        with self._kept.lock:
            known = self._kept.hand_over((zone, right), of=key)

            def look_once(core: Window) -> Looked:
                return known.get(core) or look(core)

            for looked in self._ahead(look_once, cores):
                core, _, said = looked
                if said is not None and core.intersection(needed):
                    self._kept.windows[core] = looked
                yield looked

    def _ahead(self, look: Callable[[Window], Looked], cores: list[Window]) -> Iterator[Looked]:
        """Look at windows, reading one more than is inferred; never more than that in memory."""
        under_way: deque[Future[Looked]] = deque()
        pool = ThreadPoolExecutor(self.at_once + 1)
        try:
            for core in cores:
                if len(under_way) > self.at_once:
                    yield under_way.popleft().result()
                under_way.append(pool.submit(look, core))
            while under_way:
                yield under_way.popleft().result()
        except BaseException as error:
            # nobody wants the windows that were not begun; who interrupts waits for none at all
            pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
            raise
        pool.shutdown()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("predictor", "_turns", "_kept")}


@dataclass(frozen=True)
class _Turns:
    """A model that so many threads may ask at once."""

    model: Predictor
    free: threading.Semaphore

    @property
    def window(self) -> int:
        return self.model.window

    def predict(self, windows_NCHW: Any) -> Any:
        with self.free:
            return self.model.predict(windows_NCHW)


class _Kept:
    """What was said of the windows that the next shard of the row needs as well."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.windows: dict[Window, Looked] = {}
        self._for: ShardKey | None = None

    def hand_over(self, to: ShardKey, *, of: ShardKey) -> dict[Window, Looked]:
        """The windows kept for a shard; those for the next are collected from now on."""
        known = self.windows if self._for == of else {}
        self.windows, self._for = {}, to
        return known


def checksum(array_HW: np.ndarray[Any, Any]) -> str:
    """BLAKE2b of an array's bytes, 64 bits, in hexadecimal digits."""
    return hashlib.blake2b(np.ascontiguousarray(array_HW).data, digest_size=8).hexdigest()


def _counted(source_HW: np.ndarray[Any, Any]) -> dict[int, int]:
    """Number -> how often it is in an array of whole numbers from 0."""
    most = int(source_HW.max())
    if source_HW.min() == most:
        return {most: source_HW.size}
    counts = np.zeros(most + 1, np.int64)
    for row_W in source_HW:
        counts += np.bincount(row_W, minlength=most + 1)
    return {int(number): int(counts[number]) for number in np.flatnonzero(counts)}
