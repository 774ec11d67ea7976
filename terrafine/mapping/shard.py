"""One shard of the map from imagery and a model: a pure function, whoever calls it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from terrafine.geometry import Window
from terrafine.legend import Legend, UInt8Array
from terrafine.mapping.decide import decide
from terrafine.mapping.enhance import clahe_mask
from terrafine.mapping.plan import Imagery
from terrafine.mapping.predictor import Predictor, UInt16Array
from terrafine.spec import MappingSpec


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
    shard: Window, *, imagery: Imagery, predictor: Predictor, spec: MappingSpec, legend: Legend
) -> ShardResult:
    """Read, infer, enhance and decide one shard.

    Its pixels depend on the imagery and on the global grids of windows (core + halo) and CLAHE
    blocks, never on the shard they were computed in: the enhanced class is inferred for one block
    around the shard too. Windows go to the model one at a time, because a batch of another size
    may be summed in another order.
    """
    enhances = spec.enhance.enabled and legend.enhanced is not None
    around = shard.buffered(spec.enhance.block) if enhances else shard
    enhanced_HW = np.zeros(around.shape, np.uint8)
    other_class_HW = np.zeros(shard.shape, np.uint8)
    other_HW = np.zeros(shard.shape, np.uint8)
    source_HW = np.zeros(shard.shape, np.uint16)
    for core in around.tiles(spec.core):
        wanted = core.intersection(around)
        if wanted is None or not imagery.touches(wanted):
            continue
        seen = core.buffered(spec.halo)
        image_CHW, seen_source_HW = imagery.read(seen)
        owned = core.intersection(shard)
        if owned is not None:
            source_HW[owned.slices(shard)] = seen_source_HW[owned.slices(seen)]
        if not _valid(image_CHW, imagery.fill)[wanted.slices(seen)].any():
            continue
        said = predictor.predict(image_CHW[None])
        enhanced_HW[wanted.slices(around)] = said.enhanced_NHW[0][wanted.slices(seen)]
        if owned is not None:
            other_class_HW[owned.slices(shard)] = said.other_class_NHW[0][owned.slices(seen)]
            other_HW[owned.slices(shard)] = said.other_NHW[0][owned.slices(seen)]
    inside = shard.slices(around)
    landcover_HW, confidence_HW = decide(
        enhanced_HW[inside],
        other_class_HW,
        other_HW,
        clahe_mask(enhanced_HW, spec.enhance)[inside] if enhances else None,
        enhanced_code=None if legend.enhanced is None else legend.code_of(legend.enhanced),
        spec=spec.enhance,
    )
    return ShardResult(shard, landcover_HW, confidence_HW, source_HW)


def _valid(image_CHW: UInt16Array, fill: int) -> npt.NDArray[np.bool_]:
    """(H, W): no band holds the fill number."""
    return np.asarray((image_CHW != fill).all(axis=0))
