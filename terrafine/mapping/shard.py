"""One shard of the map from imagery and a model: a pure function, whoever calls it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from terrafine.geometry import Window
from terrafine.legend import Legend, UInt8Array
from terrafine.mapping.decide import decide
from terrafine.mapping.enhance import clahe_mask
from terrafine.mapping.plan import Imagery
from terrafine.mapping.predictor import Prediction, Predictor, UInt16Array, engine_errors
from terrafine.spec import MappingSpec

Looked = tuple[Window, UInt16Array, Prediction | None]
Each = Callable[[Callable[[Window], Looked], list[Window]], Iterable[Looked]]


@dataclass(frozen=True)
class ShardResult:
    """A finished shard; arrays of (shard, shard).

    ``landcover``: legend codes, 0 where no scene has a valid pixel. ``confidence``: percent.
    ``source``: 1-based number of the scene in the spec, 0 for none.
    """

    window: Window
    landcover: UInt8Array
    confidence: UInt8Array
    source: UInt16Array


class Stopwatch:
    """Seconds by step ("read", "infer", ...), added up over threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measuring(self, step: str) -> Iterator[None]:
        """Add the time that the block takes to a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                took = time.perf_counter() - started
                self.seconds[step] = self.seconds.get(step, 0.0) + took


@dataclass(frozen=True)
class ShardJob:
    """Everything a worker needs to compute any shard of a zone."""

    imagery: Imagery
    predictor: Predictor
    spec: MappingSpec
    legend: Legend

    def __call__(self, shard: Window) -> ShardResult:
        """Compute one shard."""
        return compute_shard(
            shard,
            imagery=self.imagery,
            predictor=self.predictor,
            spec=self.spec,
            legend=self.legend,
        )


def compute_shard(
    shard: Window,
    *,
    imagery: Imagery,
    predictor: Predictor,
    spec: MappingSpec,
    legend: Legend,
    each: Each = map,
    watch: Stopwatch | None = None,
) -> ShardResult:
    """Read, infer, enhance and decide one shard.

    Its pixels depend on the imagery and on the global grids of windows (core + halo) and CLAHE
    blocks, never on the shard they were computed in: the enhanced class is inferred for one block
    around the shard too. Windows go to the model one at a time, because a batch of another size
    may be summed in another order. ``each`` calls a function for all of them, in any order and
    several at once if it likes, and yields the results in theirs.
    """
    margin = margin_of(spec, legend)
    around = shard.buffered(margin)
    enhanced_HW = np.zeros(around.shape, np.uint8)
    other_class_HW = np.zeros(shard.shape, np.uint8)
    other_HW = np.zeros(shard.shape, np.uint8)
    source_HW = np.zeros(shard.shape, np.uint16)

    watch = watch or Stopwatch()
    look = partial(
        _look, around=around, imagery=imagery, predictor=predictor, halo=spec.halo, watch=watch
    )
    for core, seen_source_HW, said in each(look, _cores(around, imagery, spec.core)):
        seen = core.buffered(spec.halo)
        wanted, owned = core.intersection(around), core.intersection(shard)
        assert wanted is not None
        if owned is not None:
            source_HW[owned.slices(shard)] = seen_source_HW[owned.slices(seen)]
        if said is None:
            continue
        enhanced_HW[wanted.slices(around)] = said.enhanced_NHW[0][wanted.slices(seen)]
        if owned is not None:
            other_class_HW[owned.slices(shard)] = said.other_class_NHW[0][owned.slices(seen)]
            other_HW[owned.slices(shard)] = said.other_NHW[0][owned.slices(seen)]
    inside = shard.slices(around)
    with watch.measuring("enhance"):
        landcover_HW, confidence_HW = decide(
            enhanced_HW[inside],
            other_class_HW,
            other_HW,
            clahe_mask(enhanced_HW, spec.enhance)[inside] if margin else None,
            enhanced_code=None if legend.enhanced is None else legend.code_of(legend.enhanced),
            spec=spec.enhance,
        )
    return ShardResult(shard, landcover_HW, confidence_HW, source_HW)


def margin_of(spec: MappingSpec, legend: Legend) -> int:
    """Pixels around a shard where the enhanced class is inferred too."""
    return spec.enhance.block if spec.enhance.enabled and legend.enhanced is not None else 0


def _look(
    core: Window,
    *,
    around: Window,
    imagery: Imagery,
    predictor: Predictor,
    halo: int,
    watch: Stopwatch,
) -> Looked:
    """One window: its core, the sources of all it shows, and what the model says of it, if there
    is anything to be seen where it is wanted."""
    seen, wanted = core.buffered(halo), core.intersection(around)
    assert wanted is not None
    with watch.measuring("read"):
        image_CHW, source_HW = imagery.read(seen)
        shows = source_HW[wanted.slices(seen)].any()
    where = f"zone {imagery.zone}, window at row {core.row}, column {core.col}"
    with watch.measuring("infer"), engine_errors(where):
        return core, source_HW, predictor.predict(image_CHW[None]) if shows else None


def _cores(around: Window, imagery: Imagery, size: int) -> list[Window]:
    """Cores of the windows that show something of the imagery inside ``around``."""
    parts = ((core, core.intersection(around)) for core in around.tiles(size))
    return [core for core, part in parts if part is not None and imagery.touches(part)]
