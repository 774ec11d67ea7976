"""Accuracy on a scene that no training saw: another day's light, haze and sensor than any chip.

Beside it the validation chips of ``terrafine compare`` are easy: they lie in the scenes that were
trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from rich.table import Table

from terrafine.accuracy import (
    AccuracyReport,
    NearEdges,
    PairedComparison,
    PointReference,
    RasterReference,
    ReferenceKind,
    Samples,
    assess,
    compare,
    sample,
)
from terrafine.comparison.held_out import PRODUCT, pooled
from terrafine.comparison.run import CellOutcome
from terrafine.geometry import Window
from terrafine.legend import UInt8Array
from terrafine.mapping import Plan
from terrafine.mapping.shard import compute_shard
from terrafine.progress import progress
from terrafine.raster import ClassRaster, open_class_raster, open_mosaics, read_points
from terrafine.recipes import overlaid
from terrafine.spec import LabelSource, MapSpec, ReferenceSpec
from terrafine.stages import Job
from terrafine.stages.assess import ImagedReference, read_predictor

SCENE, PRODUCT_FILE, TRUTH, POINTS = (
    f"test/{name}" for name in ("scene.tif", "product.tif", "truth.tif", "points.gpkg")
)
Read = Callable[[Window], UInt8Array]


class Unseen:
    """The scene in ``data``, and the maps that the cells' models make of it.

    ``unit``: pixels a side of the blocks that intervals are taken over.
    """

    def __init__(self, spec: MapSpec, data: Path, workdir: Path, *, unit: int) -> None:
        scene = {"imagery": {"scenes": [{"name": "unseen", "files": [SCENE]}]}}
        self.job = Job(
            MapSpec.model_validate(overlaid(spec.model_dump(mode="json"), scene)), data, workdir
        )
        (self.mosaic,) = open_mosaics(self.job.spec.imagery, data).values()
        self.legend = spec.resolve_legend()
        self.unit = unit
        self._points = read_points(
            ReferenceSpec(file=POINTS, crosswalk="seven", region="all"), self.legend, data
        )

    def rows(self, outcomes: Sequence[CellOutcome], first: str) -> list[dict[str, Any]]:
        """A row for the product and each variant: reports and differences over all seeds.

        ``outcomes``: of cells that all came to an end.
        """
        maps = {(o.cell.variant, o.cell.seed): self._map(o) for o in outcomes}
        product = partial(self._classes(PRODUCT_FILE).read, self.mosaic.grid)
        variants = list(dict.fromkeys(variant for variant, _ in maps))
        rows = [self._row(PRODUCT, {0: product}, {0: product}, {})]
        firsts = {seed: read for (variant, seed), read in maps.items() if variant == first}
        for variant in variants:
            own = {seed: read for (name, seed), read in maps.items() if name == variant}
            others = {} if variant == first else {s: r for s, r in firsts.items() if s in own}
            rows.append(self._row(variant, own, dict.fromkeys(own, product), others))
        return rows

    def _row(
        self,
        name: str,
        own: Mapping[int, Read],
        product: Mapping[int, Read],
        first: Mapping[int, Read],
    ) -> dict[str, Any]:
        truth = ImagedReference(self._classes(TRUTH), self.mosaic)
        whole = {seed: self._samples(own[seed], truth, product[seed]) for seed in own}
        edges = [self._samples(own[seed], NearEdges(truth), None) for seed in own]
        points = [self._samples(own[seed], self._points, None) for seed in own]
        against = [self._samples(own[seed], truth, first[seed]) for seed in first]
        return {
            "variant": name,
            "seeds": sorted(own),
            "report": self._report(name, list(whole.values())),
            "by_seed": {s: self._report(name, [found]).overall_accuracy.value
                        for s, found in whole.items()},
            "at_edges": self._report(name, edges),
            "points": self._report(name, points, kind="points"),
            "against_product": self._paired(name, PRODUCT, list(whole.values())),
            "against_first": self._paired(name, "first", against) if against else None,
        }  # fmt: skip

    def _map(self, outcome: CellOutcome) -> Read:
        """A cell's map, kept in the work directory by its model and how that maps."""
        model, how = outcome.stages["assess"].metrics["model"], outcome.cell.spec.digest("map")
        kept = self.job.workdir / "unseen" / f"{model}-{how[:12]}.npy"
        if not kept.exists():
            bundle = outcome.job.output(outcome.stages["prune"], "model")
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial_file = kept.with_suffix(".partial.npy")
            np.save(partial_file, self._computed(bundle, outcome.cell.spec))
            partial_file.rename(kept)
        codes_HW = np.load(kept, mmap_mode="r")
        whole = self.mosaic.window
        return lambda window: np.asarray(codes_HW[window.slices(whole)])

    def _computed(self, bundle: Path, spec: MapSpec) -> UInt8Array:
        mosaic, whole = self.mosaic, self.mosaic.window
        predictor = read_predictor(self.job, bundle, fill=mosaic.fill)
        codes_HW = np.zeros(whole.shape, np.uint8)
        shards = Plan.of(mosaic, spec.map).shards()
        with progress("unseen scene", total=len(shards), unit="shard") as task:
            for shard in shards:
                done = compute_shard(
                    shard, imagery=mosaic, predictor=predictor, spec=spec.map, legend=self.legend
                )
                part = shard.intersection(whole)
                assert part is not None, "a shard of the plan touches the scene"
                codes_HW[part.slices(whole)] = done.landcover[part.slices(shard)]
                task.advance()
        return codes_HW

    def _classes(self, file: str) -> ClassRaster:
        crosswalk = "seven" if file == TRUTH else self.job.spec.label_product.crosswalk
        source = LabelSource(file=file, crosswalk=crosswalk)
        return open_class_raster(source, self.legend, self.job.data)

    def _samples(
        self, read: Read, reference: RasterReference | PointReference, other: Read | None
    ) -> Samples:
        return sample(
            read, self.mosaic.grid, [self.mosaic.window], reference,
            unit=self.unit, read_other=other or read,
        )  # fmt: skip

    def _report(
        self, name: str, samples: Sequence[Samples], kind: ReferenceKind = "raster"
    ) -> AccuracyReport:
        return assess(
            pooled([{"": part} for part in samples]), self.legend,
            map_name=name, reference_name=TRUTH if kind == "raster" else POINTS, kind=kind,
        )  # fmt: skip

    def _paired(self, one: str, other: str, samples: Sequence[Samples]) -> PairedComparison:
        whole = pooled([{"": part} for part in samples])
        return compare(whole, self.legend.codes, first=one, second=other)


def rows_as_json(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    plain: list[dict[str, Any]] = TypeAdapter(list[dict[str, Any]]).dump_python(
        list(rows), mode="json"
    )
    return plain


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What people look at."""
    table = Table(
        "variant", "OA, %", "seeds", "edges", "points", "over product", "over first",
        title="A scene that no training saw", title_justify="left",
    )  # fmt: skip
    for row in rows:
        first = row["against_first"]
        table.add_row(
            row["variant"],
            row["report"].overall_accuracy.points().replace("+", ""),
            " ".join(f"{100 * value:.1f}" for value in row["by_seed"].values()),
            f"{100 * row['at_edges'].overall_accuracy.value:.1f}",
            f"{100 * row['points'].overall_accuracy.value:.1f}",
            row["against_product"].difference.points(),
            "" if first is None else first.difference.points(),
        )
    return table
