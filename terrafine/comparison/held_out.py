"""Samples of every cell of one seed, at the places where all of them were assessed.

With ``assess.reference.region: validation`` a pixel counts only where no cell was trained; with
``all`` wherever the map was assessed. Either way all variants answer for the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from terrafine.accuracy import NearEdges, Samples, sample
from terrafine.chips import open_chips
from terrafine.comparison.run import CellOutcome
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


@dataclass(frozen=True)
class Ground:
    """Where the cells of one seed can be compared: in ``windows`` of each zone all ``maps`` were
    assessed. ``apart``: variant -> why it shares no such place with the variants before it.

    ``base``: the job of the base spec, whose imagery, labels and reference hold for all.
    """

    base: Job
    mosaics: Mapping[str, Mosaic]
    maps: tuple[_Maps, ...]
    windows: Mapping[str, list[Window]]
    apart: Mapping[str, str]

    @classmethod
    def of(cls, base: Job, cells: Sequence[CellOutcome]) -> Self:
        """Of cells of one seed that came to an end, at least one."""
        mosaics = open_mosaics(base.spec.imagery, base.data)
        maps: list[_Maps] = []
        windows: dict[str, list[Window]] = {}
        apart = {}
        for own in map(_maps, cells):
            shared = {
                zone: _common(windows.get(zone, []) if maps else found, found)
                for zone, found in own.windows.items()
            }
            if any(shared.values()):
                maps, windows = [*maps, own], shared
            else:
                others = ", ".join(m.name for m in maps)
                apart[own.name] = (
                    f"no place where it was assessed is one where {others} were; give all variants "
                    "the same chips and map.region"
                    if maps
                    else "it was assessed nowhere: no chip was held out"
                )
        return cls(base, mosaics, tuple(maps), windows, apart)

    def pairs(self, first: str, *, near_edges: bool = False) -> dict[Pair, Zones]:
        """Samples of each map paired with the label product and, where it is there, with that of
        variant ``first``.

        ``near_edges``: only pixels beside an edge of the reference, none where that is no raster.
        """
        spec, data = self.base.spec, self.base.data
        reference = open_reference(spec, data)
        if near_edges and not isinstance(reference, ClassRaster):
            return {}
        labels = open_class_raster(spec.label_product, spec.resolve_legend(), data)
        product = _Maps(PRODUCT, lambda mosaic: partial(labels.read, mosaic.grid), {})
        others = [product, *(m for m in self.maps if m.name == first)]
        return {
            (one.name, other.name): {
                zone: self._sample(self.mosaics[zone], windows, reference, one, other, near_edges)
                for zone, windows in self.windows.items()
            }
            for one in self.maps
            for other in others
            if one is not other
        }

    def _sample(
        self,
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
            unit=self.base.spec.assessment.unit_of(self.base.spec.chips),
            read_other=other.read(mosaic),
        )


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


def _maps(outcome: CellOutcome) -> _Maps:
    job, stages = outcome.job, outcome.stages
    store = open_chips(chips_place(job, stages["label"]))
    held_out = HeldOutMap(job.output(stages["assess"], "held_out"))
    return _Maps(
        outcome.cell.variant,
        lambda mosaic: partial(held_out.read, mosaic.zone),
        {
            zone: assessed_windows(job.spec, store, mosaic)
            for zone, mosaic in open_mosaics(job.spec.imagery, job.data).items()
        },
    )


def _imaged(
    reference: Reference, mosaic: Mosaic, near_edges: bool
) -> ImagedReference | NearEdges | Points:
    if not isinstance(reference, ClassRaster):
        return reference
    imaged = ImagedReference(reference, mosaic)
    return NearEdges(imaged) if near_edges else imaged


def _common(first: Sequence[Window], second: Sequence[Window]) -> list[Window]:
    """The parts of windows that lie in one of both."""
    return sorted(first if set(first) == set(second) else _overlaps(first, second))


def _overlaps(first: Sequence[Window], second: Sequence[Window]) -> Iterator[Window]:
    for one in first:
        for other in second:
            part = one.intersection(other)
            if part is not None:
                yield part
