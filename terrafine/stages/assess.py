"""assess: what the map would say, and what the product says, against the same reference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from terrafine.accuracy import (
    AccuracyReport,
    Figure,
    GateEvidence,
    PairedComparison,
    Samples,
    assess,
    compare,
    sample,
)
from terrafine.chips import ChipStore, open_chips
from terrafine.errors import ModelError
from terrafine.export import ServedModel, load_bundle, read_info
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import NO_CLASS, Legend, UInt8Array
from terrafine.mapping import Plan, Prediction, Predictor, TorchPredictor, compute_shard
from terrafine.mapping.predictor import UInt16Array
from terrafine.raster import (
    ClassRaster,
    Mosaic,
    Points,
    is_vector,
    open_class_raster,
    open_mosaics,
    read_points,
)
from terrafine.spec import MapSpec, resolve_in
from terrafine.stages.engine import Job, Manifest, Metric, Outcome, Stage
from terrafine.stages.held_out import HeldOutWriter, ReadMap
from terrafine.stages.label import chips_place, scene_files
from terrafine.training import choose_device

Reference = ClassRaster | Points

EVIDENCE = TypeAdapter(GateEvidence)

HELD_OUT = "held_out.zip"

# Windows whose prediction is kept while neighbouring cells ask for them again as their halo.
_REMEMBERED = 64


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store = open_chips(chips_place(job, needed["label"]))
    candidate = read_predictor(job, job.output(needed["prune"], "model"), fill=store.fill)
    labels = open_class_raster(job.spec.label_product, store.legend, job.data)

    def product(mosaic: Mosaic) -> ReadMap:
        return partial(labels.read, mosaic.grid)

    with HeldOutWriter(folder / HELD_OUT) as held_out:

        def kept(mosaic: Mosaic) -> ReadMap:
            return held_out.keep(mosaic.zone, _on_demand(job.spec, candidate, mosaic))

        samples = sample_map(job, store, kept, product)
    map_report = report(job, samples, "map")
    product_report = report(job, samples.of_other(), "product")
    gain = paired(job, samples, "map", "product")
    evidence = GateEvidence(
        report=map_report,
        product=product_report,
        against_product=gain,
        against_champion=_against_champion(job, store, candidate),
    )
    (folder / "evidence.json").write_bytes(EVIDENCE.dump_json(evidence, indent=1))
    (folder / "map.json").write_text(map_report.model_dump_json(indent=1))
    (folder / "product.json").write_text(product_report.model_dump_json(indent=1))
    (folder / "accuracy.md").write_text(
        map_report.to_markdown() + "\n\n" + product_report.to_markdown()
    )
    return Outcome(
        {
            "evidence": Path("evidence.json"),
            "map_report": Path("map.json"),
            "product_report": Path("product.json"),
            "accuracy": Path("accuracy.md"),
            "held_out": Path(HELD_OUT),
        },
        {
            "model": read_info(job.output(needed["prune"], "model")).digest,
            "samples": map_report.samples,
            **_flat("map_oa", map_report.overall_accuracy),
            **_flat("product_oa", product_report.overall_accuracy),
            **_flat("gain_oa", gain.difference),
        },
    )


def sample_map(
    job: Job,
    store: ChipStore | None,
    read_map: Callable[[Mosaic], ReadMap],
    read_other: Callable[[Mosaic], ReadMap] | None,
) -> Samples:
    """Samples of a map, zone by zone, where the spec wants it assessed.

    A raster reference counts where there is imagery; points are counted wherever they lie, since
    each was chosen by someone, and one without a class is "unmapped".
    """
    opened = open_reference(job.spec, job.data)
    parts = []
    for mosaic in open_mosaics(job.spec.imagery, job.data).values():
        reference = ImagedReference(opened, mosaic) if isinstance(opened, ClassRaster) else opened
        parts.append(
            sample(
                read_map(mosaic),
                mosaic.grid,
                assessed_windows(job.spec, store, mosaic),
                reference,
                unit=job.spec.assessment.unit_of(job.spec.chips),
                read_other=read_other(mosaic) if read_other else None,
            )
        )
    return Samples.concatenate(parts)


def assessed_windows(spec: MapSpec, store: ChipStore | None, mosaic: Mosaic) -> list[Window]:
    """The validation chips of a zone, or all its shards, which takes no chips."""
    if spec.assessment.reference.region == "all":
        return Plan.of(mosaic, spec.map).shards()
    assert store is not None, "nothing was kept from a training: checked by those who ask"
    chips = store.indexes("validation").tolist()
    return [store.window(i) for i in chips if store.table["zone"].iloc[i] == mosaic.zone]


def open_reference(spec: MapSpec, data: Path) -> Reference:
    """The reference the spec names: points, or a raster through its crosswalk."""
    source, legend = spec.assessment.reference, spec.resolve_legend()
    if is_vector(resolve_in(data, source.file)):
        return read_points(source, legend, data)
    return open_class_raster(source, legend, data)


def report(job: Job, samples: Samples, name: str) -> AccuracyReport:
    """The accuracy report of one map with the spec's options."""
    source, options = job.spec.assessment.reference, job.spec.assessment
    points = is_vector(resolve_in(job.data, source.file))
    return assess(
        samples,
        job.spec.resolve_legend(),
        map_name=name,
        reference_name=source.file,
        kind="points" if points else "raster",
        resamples=options.bootstrap,
        confidence=options.confidence,
        seed=job.spec.seed,
    )


def paired(job: Job, samples: Samples, first: str, second: str) -> PairedComparison:
    """Paired comparison of the two maps in ``samples`` with the spec's options."""
    return compare(
        samples,
        job.spec.resolve_legend().codes,
        first=first,
        second=second,
        resamples=job.spec.assessment.bootstrap,
        confidence=job.spec.assessment.confidence,
        seed=job.spec.seed,
    )


@dataclass(frozen=True)
class ImagedReference:
    """A reference raster that knows nothing where no scene has a pixel."""

    raster: ClassRaster
    mosaic: Mosaic

    def read(self, grid: PixelGrid, window: Window) -> UInt8Array:
        """(H, W) uint8 legend codes; 0 without a reference class or without imagery."""
        _, source_HW = self.mosaic.read(window)
        return np.where(source_HW > 0, self.raster.read(grid, window), NO_CLASS).astype(np.uint8)


class RememberingPredictor:
    """A predictor that keeps its last answers, since neighbouring cells share windows."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._answers: OrderedDict[bytes, Prediction] = OrderedDict()

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self._predictor.window

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows of shape (N, bands, window, window)."""
        key = sha256(windows_NCHW.tobytes()).digest()
        if key not in self._answers:
            self._answers[key] = self._predictor.predict(windows_NCHW)
            if len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        self._answers.move_to_end(key)
        return self._answers[key]


def read_predictor(job: Job, bundle: Path, *, fill: int) -> Predictor:
    """The model of a bundle, to map imagery whose missing pixels are ``fill``.

    ModelError when it is of other bands, another scale, fill or legend.
    """
    model, info = load_bundle(bundle, legend=job.spec.resolve_legend())
    if info.fill != fill:
        raise ModelError(
            f"{bundle}: takes {info.fill} for a missing pixel, but the imagery marks missing "
            f"pixels by {fill}; set imagery.nodata as it was when the model was trained"
        )
    imagery = job.spec.imagery
    if (info.bands, info.scale) != (imagery.bands, imagery.scale):
        raise ModelError(
            f"{bundle}: takes bands {', '.join(info.bands)} at scale {info.scale:g}, the imagery "
            f"has {', '.join(imagery.bands)} at scale {imagery.scale:g}; give a model "
            "of these bands"
        )
    served = ServedModel(model, info.legend).to(choose_device(job.spec.training.device))
    return RememberingPredictor(TorchPredictor(served, window=job.spec.map.window))


def _on_demand(spec: MapSpec, predictor: Predictor, mosaic: Mosaic) -> ReadMap:
    """The map of a zone, computed where it is asked for: the same pixels that mapping gives,
    because they do not depend on the cell they are computed in."""
    legend: Legend = spec.resolve_legend()
    enhances = spec.map.enhance.enabled and legend.enhanced is not None
    size = max(spec.map.core, spec.map.enhance.block if enhances else 0)

    def read(window: Window) -> UInt8Array:
        out_HW = np.zeros(window.shape, np.uint8)
        for cell in window.tiles(size):
            part = cell.intersection(window)
            assert part is not None, "a tile of a window touches it"
            done = compute_shard(
                cell, imagery=mosaic, predictor=predictor, spec=spec.map, legend=legend
            )
            out_HW[part.slices(window)] = done.landcover[part.slices(cell)]
        return out_HW

    return read


def _against_champion(job: Job, store: ChipStore, candidate: Predictor) -> PairedComparison | None:
    if job.spec.gate.champion is None:
        return None
    champion = read_predictor(job, resolve_in(job.data, job.spec.gate.champion), fill=store.fill)
    samples = sample_map(
        job,
        store,
        partial(_on_demand, job.spec, candidate),
        partial(_on_demand, job.spec, champion),
    )
    return paired(job, samples, "map", "champion")


def _flat(name: str, figure: Figure) -> dict[str, Metric]:
    ends = {"": figure.value, "_low": figure.low, "_high": figure.high}
    return {f"{name}{end}": round(v, 4) for end, v in ends.items() if v is not None}


def _files(spec: MapSpec) -> list[str]:
    champion = [spec.gate.champion] if spec.gate.champion else []
    return [*scene_files(spec), spec.label_product.file, spec.assessment.reference.file, *champion]


ASSESS = Stage(
    name="assess",
    needs=("label", "prune"),
    sections=("imagery", "labels", "assess", "map", "gate.champion"),
    files=_files,
    work=_work,
)
