"""Samples of every cell of one seed, at the places that all of them held out.

A pixel counts only where no cell was trained, so that all variants answer for the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from terrafine.accuracy import NearEdges, Samples, sample
from terrafine.chips import open_chips
from terrafine.comparison.run import CellOutcome
from terrafine.errors import AccuracyError
from terrafine.geometry import Window
from terrafine.raster import ClassRaster, Mosaic, Points, open_class_raster, open_mosaics
from terrafine.stages import Job, open_reference
from terrafine.stages.assess import ImagedReference, Reference, assessed_windows
from terrafine.stages.held_out import HeldOutMap, ReadMap
from terrafine.stages.label import chips_place

PRODUCT = "label product"

# Samples by zone, whose units are numbered alike in every cell.
Zones = Mapping[str, Samples]
# A variant, and what it is paired with: the label product or another variant.
Pair = tuple[str, str]


@dataclass(frozen=True)
class _Maps:
    """How to read a map of each zone, and where it was assessed."""

    name: str
    read: Callable[[Mosaic], ReadMap]
    windows: Mapping[str, list[Window]]


def sample_pairs(
    cells: Sequence[CellOutcome], first: str, *, near_edges: bool = False
) -> dict[Pair, Zones]:
    """Samples of each cell paired with the product and, where it is there, with variant ``first``.

    ``cells``: those of one seed that came to an end, at least one. ``near_edges``: only pixels
    beside an edge of the reference, none where that is no raster. AccuracyError when they have no
    place in common that they all held out, or lie on different grids.
    """
    yardstick = cells[0].job
    mosaics = open_mosaics(yardstick.spec.imagery, yardstick.data)
    maps = [_maps(cell, mosaics) for cell in cells]
    common = {zone: _common([m.windows[zone] for m in maps]) for zone in mosaics}
    if not any(common.values()):
        raise AccuracyError(
            f"{', '.join(str(cell.cell) for cell in cells)}: no pixel was held out from the "
            "training of all of them; give them the same chips.size and chips.block"
        )
    labels = open_class_raster(
        yardstick.spec.label_product, yardstick.spec.resolve_legend(), yardstick.data
    )
    product = _Maps(PRODUCT, lambda mosaic: partial(labels.read, mosaic.grid), {})
    reference = open_reference(yardstick.spec, yardstick.data)
    if near_edges and not isinstance(reference, ClassRaster):
        return {}
    others = [product, *(m for m in maps if m.name == first)]
    return {
        (one.name, other.name): {
            zone: _sample(yardstick, mosaics[zone], windows, reference, one, other, near_edges)
            for zone, windows in common.items()
        }
        for one in maps
        for other in others
        if one is not other
    }


def pooled(parts: Iterable[Zones]) -> Samples:
    """Samples of several seeds as one: a unit that two of them sampled stays one unit."""
    given = list(parts)
    zones = {
        zone: [part[zone] for part in given if zone in part] for part in given for zone in part
    }
    return Samples.concatenate([_joined(samples) for samples in zones.values()])


def _joined(parts: Sequence[Samples]) -> Samples:
    units = [part.unit for part in parts]
    others = [part.other for part in parts]
    assert all(unit is not None for unit in units), "sample() numbers units"
    return Samples(
        np.concatenate([part.mapped for part in parts]),
        np.concatenate([part.reference for part in parts]),
        np.concatenate([unit for unit in units if unit is not None]),
        np.concatenate([other for other in others if other is not None]),
        np.concatenate([part.counts for part in parts]),
    )


def _maps(outcome: CellOutcome, mosaics: Mapping[str, Mosaic]) -> _Maps:
    job, stages = outcome.job, outcome.stages
    own = open_mosaics(job.spec.imagery, job.data)
    if {z: m.grid for z, m in own.items()} != {z: m.grid for z, m in mosaics.items()}:
        raise AccuracyError(
            f"{outcome.cell}: its imagery lies on another grid than that of the variants before "
            "it, so that they have no samples in common; compare variants of the same scenes"
        )
    store = open_chips(chips_place(job, stages["label"]))
    held_out = HeldOutMap(job.output(stages["assess"], "held_out"))
    return _Maps(
        outcome.cell.variant,
        lambda mosaic: partial(held_out.read, mosaic.zone),
        {zone: assessed_windows(job.spec, store, mosaic) for zone, mosaic in own.items()},
    )


def _sample(
    job: Job,
    mosaic: Mosaic,
    windows: Sequence[Window],
    reference: Reference,
    one: _Maps,
    other: _Maps,
    near_edges: bool,
) -> Samples:
    return sample(
        one.read(mosaic),
        mosaic.grid,
        windows,
        _imaged(reference, mosaic, near_edges),
        unit=job.spec.assessment.unit,
        read_other=other.read(mosaic),
    )


def _imaged(
    reference: Reference, mosaic: Mosaic, near_edges: bool
) -> ImagedReference | NearEdges | Points:
    if not isinstance(reference, ClassRaster):
        return reference
    imaged = ImagedReference(reference, mosaic)
    return NearEdges(imaged) if near_edges else imaged


def _common(windows: Sequence[list[Window]]) -> list[Window]:
    """The parts of windows that lie in one of every list."""
    shared, *rest = windows
    for others in rest:
        if set(others) != set(shared):
            shared = list(_overlaps(shared, others))
    return sorted(shared)


def _overlaps(first: Sequence[Window], second: Sequence[Window]) -> Iterator[Window]:
    for one in first:
        for other in second:
            part = one.intersection(other)
            if part is not None:
                yield part
