"""MapSpec: one YAML file says everything about a run.

Every default that Dong et al. 2020 states is that paper's, and its description names the section.
Models are frozen and refuse unknown keys. Paths are relative to the data root (the spec's folder,
or ``--data`` / ``TERRAFINE_DATA``) and cannot leave it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from functools import reduce
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from terrafine.errors import SpecError
from terrafine.legend import CROSSWALKS, LEGENDS, Crosswalk, Legend
from terrafine.recipes import DEFAULT, overlaid, with_recipe
from terrafine.spec_errors import did_you_mean, explain_validation
from terrafine.strict_yaml import load_yaml

DATA_VARIABLE = "TERRAFINE_DATA"
AS_IN_SPEC: Final = "as in the spec"
"""What a field of a pipeline's form says that changes nothing: an empty one reads as missing."""
NO_CHANGES: Mapping[str, str] = MappingProxyType({})

# How a machine goes about it, not what comes out.
MACHINE_SETTINGS: Mapping[str, set[str]] = {
    "training": {
        "device",
        "loader_workers",
        "workers",
        "compile",
        "checkpoint_steps",
        "max_failures",
        "metrics_port",
        "storage",
    },
    "chips": {"workers", "storage"},
    "map": {"threads", "wave", "workers", "server", "deadline", "storage", "metrics_port"},
}


def _relative(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(
            f"path {path!r} leaves the data root; give it relative to the root "
            f"(the spec's folder, or --data / {DATA_VARIABLE})"
        )
    return path


def _run_name(name: str) -> str:
    if len(name) > 50 or name.startswith("run-"):
        raise ValueError("a run's name has at most 50 characters and does not start with 'run-'")
    return name


def _release_name(name: str) -> str:
    if name == "main" or name.startswith("run-"):
        raise ValueError(f"{name!r} means something else in a map store; choose another name")
    return name


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"{value} is not a power of two")
    return value


def _place(place: str) -> str:
    return place if "://" in place else _relative(place)


DataPath = Annotated[str, AfterValidator(_relative)]
DataPlace = Annotated[str, AfterValidator(_place)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
ReleaseName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"), AfterValidator(_release_name)
]
Share = Annotated[float, Field(ge=0, le=1)]
PrunedShare = Annotated[float, Field(ge=0, lt=1)]
PowerOfTwo = Annotated[int, Field(ge=16), AfterValidator(_power_of_two)]
CrosswalkChoice = str | dict[int, int | str]


class Section(BaseModel):
    """Base of every part of the spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SceneSpec(Section):
    """One scene: a multi-band file, or one single-band file per band in the order of `bands`."""

    name: Name
    files: Annotated[tuple[DataPath, ...], Field(min_length=1)]
    band_indexes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="1-based bands of a multi-band file; default: the first ones"
    )


class CloudMaskSpec(Section):
    """Which pixels of a scene count as missing because a mask says cloud, shadow or haze."""

    asset: str | None = Field(
        None,
        description="what holds the mask: an asset (STAC), a column (GeoParquet), a {band} of the "
        "pattern (folder); default: the image's own file",
    )
    band: Annotated[int, Field(ge=1)] = Field(1, description="of that file")
    values: Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        description="that mean missing: 3, 8, 9, 10 of Sentinel-2's SCL, 0 of Planet's UDM2 band 1"
    )


class CatalogueSpec(Section):
    """Many scenes, found in a catalogue and not opened before they are read."""

    source: DataPlace = Field(
        description="path under the data root, or URL: a STAC file (.json, .geojson) or API, a "
        "GeoParquet (.parquet), or a folder of GeoTIFF or JPEG 2000 (s3://bucket/folder too)"
    )
    assets: tuple[str, ...] = Field(
        (),
        description="files of a scene that hold the bands, in their order, or the one that holds "
        "them all: assets (STAC), values of {band} in `pattern` (folder); default: those named "
        "like imagery.bands, else the only image",
    )
    band_indexes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="1-based bands of a multi-band file; default: the first ones"
    )
    pattern: str = Field(
        "**/*",
        description="of file names in a folder; {band} in it stands for what differs between the "
        "files of one scene, as in '**/*_{band}.jp2'",
    )
    max_cloud_cover: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="percent; cloudier scenes are left out"
    )
    dates: tuple[date, date] | None = Field(
        None, description="first and last day; other scenes are left out"
    )
    region: DataPath | None = Field(
        None, description="file of polygons; scenes outside are left out"
    )
    order: Literal["catalogue", "cloud_cover", "newest", "oldest", "priority"] = Field(
        "catalogue",
        description="which scene lies on top: the first of the catalogue, the least cloudy, the "
        "newest, the oldest, or the one with the smallest `priority`",
    )
    cloud_mask: CloudMaskSpec | None = None
    resolution: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="pixel size of the map in units of the CRS, from the CRS's origin; scenes off "
        "these pixels give their nearest ones; default: the grid of each zone's first scene, off "
        "which a scene cannot be read",
    )

    @field_validator("dates")
    @classmethod
    def _in_order(cls, dates: tuple[date, date] | None) -> tuple[date, date] | None:
        if dates is not None and dates[0] > dates[1]:
            raise ValueError(f"the first day {dates[0]} is after the last {dates[1]}")
        return dates


class ImagerySpec(Section):
    """The fine imagery: scenes one by one, or a catalogue of them."""

    scenes: tuple[SceneSpec, ...] = ()
    catalogue: CatalogueSpec | None = None
    bands: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("red", "green", "blue", "nir"), description="R G B NIR (Dong et al. 2020, section 2.1)"
    )
    nodata: float | None = Field(
        None,
        description="value of missing pixels, beside what each file says; default: only that "
        "(65535 stands for them in a catalogue, whose files may differ)",
    )
    crs: str | None = Field(None, description="overrides the CRS the files state, e.g. EPSG:32612")
    scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="stored values are multiplied by this before they are rounded to uint16"
    )
    on_unreadable: Literal["fail", "skip"] | None = Field(
        None,
        description="of a scene that cannot be read: 'skip' reports it and takes the next one "
        "below; default: 'skip' in a catalogue, 'fail' for `scenes`",
    )

    @field_validator("scenes")
    @classmethod
    def _names_differ(cls, scenes: tuple[SceneSpec, ...]) -> tuple[SceneSpec, ...]:
        names = [s.name for s in scenes]
        if len(set(names)) < len(names):
            raise ValueError(f"two scenes share a name: {names}")
        return scenes

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.scenes) == (self.catalogue is not None):
            raise ValueError("give either `scenes`, at least one, or a `catalogue`, not both")
        return self

    @property
    def skips_unreadable(self) -> bool:
        """Whether a scene that cannot be read is passed over and reported."""
        chosen = self.on_unreadable or ("skip" if self.catalogue else "fail")
        return chosen == "skip"


class LabelSource(Section):
    """A categorical raster and how its codes become classes."""

    file: DataPath
    crosswalk: CrosswalkChoice = Field(
        "FROM-GLC10",
        description="name of a known crosswalk, or {code: class name or code, 0 to ignore}",
    )
    crs: str | None = Field(None, description="overrides the CRS the file states")
    nodata: float | None = Field(None, description="default: the file's own, then the crosswalk's")

    def resolve_crosswalk(self, legend: Legend) -> Crosswalk:
        """The crosswalk onto ``legend``; SpecError when it is unknown or does not fit."""
        if isinstance(self.crosswalk, str):
            if self.crosswalk not in CROSSWALKS:
                raise SpecError(
                    f"crosswalk {self.crosswalk!r} is unknown"
                    f"{did_you_mean(self.crosswalk, CROSSWALKS)}; known: "
                    f"{', '.join(CROSSWALKS)}; or give a mapping {{code: class}}"
                )
            walk = CROSSWALKS[self.crosswalk]
        else:
            walk = Crosswalk(
                name="in the spec",
                mapping={
                    code: legend.code_of(target) if isinstance(target, str) else target
                    for code, target in self.crosswalk.items()
                },
            )
        walk.check(legend)
        return walk if self.nodata is None else walk.model_copy(update={"nodata": self.nodata})


Region = Literal["validation", "all"]


class ReferenceSpec(LabelSource):
    """What accuracy is measured against: a raster, or a vector file of points."""

    class_column: str = Field("class", description="column of a vector file that holds the code")
    region: Region = Field(
        "validation",
        description="'validation': only where no chip was trained on; 'all': everywhere (points "
        "that nobody trained on, as in Dong et al. 2020, section 2.3)",
    )


class ChipsSpec(Section):
    """How scenes are cut for training."""

    size: PowerOfTwo = Field(1024, description="pixels a side (section 2.3)")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="2 000 of 102 000 (section 2.3)"
    )
    block: Annotated[int, Field(ge=1)] = Field(
        4, description="chips a side of the blocks that the train/validation split keeps whole"
    )
    max_missing: Share = Field(
        0.5, description="chips with a larger share of missing or unlabelled pixels are left out"
    )
    workers: Annotated[int, Field(ge=1)] = Field(1, description="processes that cut chips")
    storage: str | None = Field(
        None,
        description="folder or URL (s3://bucket/folder) for the chips, which every training "
        "worker must reach; default: the work directory",
    )


class FilterSpec(Section):
    """Which chips the final model is trained on."""

    min_agreement: Share = Field(
        0.20,
        description="chips on which preliminary model and product agree on less are dropped "
        "(section 2.3)",
    )


FirstNorm = Literal["instance", "batch", "instance-batch"]


class ModelSpec(Section):
    """The network."""

    arch: Annotated[
        str, Field(pattern=r"^(hrnet_w[1-9][0-9]*|unet_w[1-9][0-9]*|fcdensenet64_k[1-9][0-9]*)$")
    ] = Field(
        "hrnet_w24",
        description="hrnet_w<C>: HRNet, C = 24 in section 3.2; unet_w<channels of the finest "
        "level> and fcdensenet64_k<growth>: the others of the paper's Table 4",
    )
    stem_channels: Annotated[int, Field(ge=4)] = Field(
        64, description="of HRNet's stem and its first stage (section 3.2); fewer suit small runs"
    )
    stem_strides: tuple[Literal[1, 2], Literal[1, 2]] = Field(
        (2, 1), description="one 2-strided convolution at first (section 3.2)"
    )
    first_norm: FirstNorm = Field(
        "instance",
        description="norm after the first convolution (section 3.2); instance-batch: half the "
        "channels of each at the start of training (IBN-Net, Pan et al. 2018)",
    )


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"{value} is even, and has no middle pixel; take {value + 1}")
    return value


def _ordered(workers: int | tuple[int, int]) -> int | tuple[int, int]:
    if isinstance(workers, tuple) and workers[0] > workers[1]:
        raise ValueError(f"the least number of workers {workers[0]} is above the most {workers[1]}")
    return workers


_Count = Annotated[int, Field(ge=1)]
WorkerRange = Annotated[_Count | tuple[_Count, _Count], AfterValidator(_ordered)]


class TrainingSpec(Section):
    """Optimisation."""

    epochs: Annotated[int, Field(ge=1)] = Field(120, description="section 3.2")
    preliminary_epochs: Annotated[int, Field(ge=1)] | None = Field(
        None, description="for the preliminary model; default: the same"
    )
    batch: Annotated[int, Field(ge=1)] = Field(32, description="over all workers (section 3.2)")
    crop: Annotated[int, Field(ge=16)] = Field(513, description="pixels a side (section 2.3)")
    crops_per_chip: Annotated[int, Field(ge=1)] = Field(1, description="in every epoch")
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.01, description="initial (section 3.2)")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="SGD (section 3.2)")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="not given in the paper")
    schedule: Literal["poly", "cosine", "constant"] = Field(
        "poly", description="of the learning rate; the paper gives only its start"
    )
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {"impervious": 3.0},
        description="in the cross entropy, others 1 (section 3.2)",
        validate_default=True,
    )
    label_window: Annotated[int, Field(ge=1), AfterValidator(_odd)] = Field(
        1,
        description="odd; a label is held against the mean probability of so many pixels a side: "
        "3 where a pixel of a 10-m product covers 3 x 3 of the imagery's, 1 each pixel alone "
        "(section 3.2)",
    )
    label_confusion: Literal["published", "estimated"] | None = Field(
        None,
        description="the loss takes into account how the label product confuses classes: "
        "'estimated' from the preliminary model and the labels of the validation chips, or "
        "'published' for it, where there is a matrix for labels.crosswalk and the legend "
        "(FROM-GLC10 and seven: Dong et al. 2020, Table 2); default: labels are taken at their "
        "word (section 3.2)",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay by step of the running mean of the weights, which is what is validated "
        "and kept; default: the weights themselves (section 3.2)",
    )
    flips_and_rotations: bool = Field(True, description="the eight symmetries of the square")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on CUDA, fp32 on the CPU"
    )
    compile: bool = Field(False, description="torch.compile the network")
    loader_workers: Annotated[int, Field(ge=0)] = Field(
        0, description="processes that read chips, for each training worker"
    )
    workers: WorkerRange = Field(
        1,
        description="training processes; more than one, or a range [least, most], runs on Ray "
        "Train and takes one GPU each where `device` allows",
    )
    micro_batch: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="crops a worker takes at once; its share of the batch is accumulated from "
        "these, and batch norm sees no more than these of every worker, so that another number of "
        "workers then trains otherwise; default: its whole share",
    )
    sync_batch_norm: bool = Field(True, description="batch norm over the crops of all workers")
    checkpoint_steps: Annotated[int, Field(ge=1)] = Field(
        500, description="a checkpoint is written after so many steps, and after every epoch"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3, description="lost workers after which Ray Train gives up"
    )
    metrics_port: Annotated[int, Field(ge=1024, le=65535)] | None = Field(
        None, description="serve Prometheus metrics here while training"
    )
    storage: str | None = Field(
        None,
        description="folder or URL (s3://bucket/folder) for checkpoints and curves, which every "
        "worker must reach; default: the work directory",
    )


class PruneSpec(Section):
    """Filter pruning by geometric median of the trained model (section 3.4, Algorithm 1).

    Without any ratio the trained model is handed on as it is.
    """

    ratio: PrunedShare = Field(
        0.0, description="share of filters taken from every layer; 0.4 in section 3.4"
    )
    stage_ratios: dict[str, PrunedShare] = Field(
        {},
        description="layer, part of the network or pattern (stem, stage4, 'stage?.exchanges.*', "
        "head; down, up) -> its own ratio; of several that fit the last one counts, and layers "
        "that are coupled take the smallest of theirs",
    )
    exclude: tuple[str, ...] = Field(
        (), description="layers, parts of the network or patterns that keep all their filters"
    )
    coupled: bool = Field(
        False,
        description="also prune channels that several layers add up (residual sums, fusions), in "
        "all of them at once; the paper leaves the last layers before a fusion whole (section 3.4)",
    )
    round_to: Annotated[int, Field(ge=1)] = Field(
        1, description="the filters left are rounded up to a multiple; 8 suits most hardware"
    )
    epochs: Annotated[int, Field(ge=1)] = Field(
        10,
        description="after each of which the filters nearest the geometric median are set to zero "
        "(section 3.4, which names no number)",
    )
    fine_tune_epochs: Annotated[int, Field(ge=0)] = Field(
        10, description="of the compact network; the paper has none (section 3.4)"
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="initial, of both; default: a tenth of training.learning_rate"
    )

    @property
    def active(self) -> bool:
        """Whether any filter is to go."""
        return any(ratio > 0 for ratio in (self.ratio, *self.stage_ratios.values()))


class AssessSpec(Section):
    """How accuracy is estimated."""

    reference: ReferenceSpec
    bootstrap: Annotated[int, Field(ge=100)] = Field(1000, description="resamples for intervals")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    unit: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="pixels a side of the blocks resampled for a raster reference, whose "
        "neighbouring pixels are no independent samples; default: the blocks that are held out, "
        "chips.size x chips.block, since errors resemble each other over tens to hundreds of "
        "pixels; points are resampled one by one",
    )

    def unit_of(self, chips: ChipsSpec) -> int:
        """Pixels a side of the resampled blocks, which lie on the grid of the chips."""
        return self.unit or chips.size * chips.block


class GateSpec(Section):
    """What a model must show before it is promoted. Every rule that is set must hold."""

    better_than_product: bool = Field(
        True, description="paired interval of OA(map) - OA(product) lies above `margin`"
    )
    margin: float = Field(
        0.0, allow_inf_nan=False, description="in points of OA / 100, may be negative"
    )
    min_overall_accuracy: Share | None = None
    min_users_accuracy: dict[str, Share] = Field({}, description="class name -> floor")
    min_producers_accuracy: dict[str, Share] = Field({}, description="class name -> floor")
    min_samples: Annotated[int, Field(ge=1)] = Field(
        50, description="reference samples in all that the verdict needs"
    )
    min_samples_per_class: Annotated[int, Field(ge=0)] = Field(
        0, description="for every class that has a floor, and for every class in the reference"
    )
    min_units: Annotated[int, Field(ge=2)] = Field(
        30,
        description="independent units that the verdict needs: points, or blocks of `assess.unit` "
        "pixels, since neighbouring pixels are not independent",
    )
    max_unmapped: Share = Field(0.01, description="share of reference samples without a class")
    champion: DataPath | None = Field(
        None,
        description="model bundle now in production; the candidate must not be worse by a paired "
        "test at the 1 - `assess.confidence` level",
    )


class ExportSpec(Section):
    """The ONNX graph."""

    opset: Annotated[int, Field(ge=17)] = 18
    min_class_agreement: Share = Field(
        0.9999, description="of ONNX and torch on real windows, or the export is refused"
    )
    max_probability_error: Share = Field(0.02, description="largest, on the same windows")
    parity_windows: Annotated[int, Field(ge=1)] = Field(
        4, description="how many; every other one calibrates int8, which the others judge"
    )
    variants: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(
        ("fp32",), description="of the served graph; fp32 is always made"
    )
    reduced_class_agreement: dict[Literal["fp16", "int8"], Share] = Field(
        {},
        validate_default=True,
        description="variant -> least agreement with the network on those windows; the others: "
        "0.999 (fp16), 0.98 (int8). A variant below it is left out of the release",
    )
    reduced_probability_error: dict[Literal["fp16", "int8"], Share] = Field(
        {},
        validate_default=True,
        description="variant -> largest error of a probability, in the mean over the pixels of "
        "those windows; the others: 0.01 (fp16), 0.03 (int8). A variant above it is left out too",
    )

    @field_validator("reduced_class_agreement")
    @classmethod
    def _every_variant_has_a_floor(cls, floors: dict[str, float]) -> dict[str, float]:
        return {"fp16": 0.999, "int8": 0.98, **floors}

    @field_validator("reduced_probability_error")
    @classmethod
    def _every_variant_has_a_bound(cls, bounds: dict[str, float]) -> dict[str, float]:
        return {"fp16": 0.01, "int8": 0.03, **bounds}


class EnhanceSpec(Section):
    """CLAHE of the enhanced class (section 3.3).

    Clip limit and threshold are not in the paper: these lost least overall accuracy of those tried
    on the North Carolina scene (docs/method.md).
    """

    enabled: bool = True
    block: PowerOfTwo = Field(512, description="pixels a side (section 3.3)")
    clip_limit: Annotated[float, Field(gt=0)] = 2.0
    threshold: Annotated[int, Field(ge=0, le=255)] = 160
    gain: Annotated[float, Field(ge=1)] = Field(2.0, description="inside the mask (section 3.3)")
    loss: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="outside the mask (section 3.3)"
    )


class MappingSpec(Section):
    """How the map is cut into work. Windows, blocks and shards lie on one global grid."""

    core: PowerOfTwo = Field(1024, description="pixels a side that a window contributes")
    halo: Annotated[int, Field(ge=0)] = Field(128, description="pixels seen around the core")
    shard: PowerOfTwo = Field(8192, description="pixels a side that one worker writes whole")
    region: DataPath | None = Field(
        None,
        description="file of polygons; shards that touch none are not mapped, those that do are "
        "mapped whole; default: wherever there are scenes",
    )
    enhance: EnhanceSpec = EnhanceSpec()
    wave: Annotated[int, Field(ge=1)] = Field(16, description="shards per commit")
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="of the predictor in each worker; 0: this machine's cores, shared out"
    )
    workers: Annotated[int, Field(ge=1)] = Field(
        1, description="that read, infer and write shards; more than 1 are Ray actors"
    )
    predictor: Literal["onnx", "openvino", "openvino_bf16", "triton", "torch"] = Field(
        "onnx",
        description="onnx: onnxruntime in each worker, openvino: the same graph on Intel's engine, "
        "openvino_bf16: there in bfloat16, where the CPU has it, "
        "triton: the model servers at `server`, torch: the network itself, on a GPU where one is",
    )
    server: str | None = Field(
        None,
        description="of predictor triton: grpc://host:port[,host:port...]; only the release that "
        "was exported may answer",
    )
    deadline: Annotated[float, Field(ge=1)] = Field(
        600.0,
        description="seconds for which a window is sent again to servers that do not answer, "
        "before the map stops; it resumes",
    )
    storage: str | None = Field(
        None,
        description="where the map store is: folder or URL (s3://bucket/folder) that every worker "
        "reaches; default: map.icechunk in the work directory",
    )
    metrics_port: Annotated[int, Field(ge=1024, le=65535)] | None = Field(
        None, description="Prometheus metrics of the running map are served there"
    )

    @model_validator(mode="after")
    def _nested(self) -> Self:
        if (self.predictor == "triton") != (self.server is not None):
            raise ValueError(
                f"predictor {self.predictor} with server {self.server}: the server is given for "
                "predictor triton, and for no other"
            )
        for what, size in (("core", self.core), ("enhance.block", self.enhance.block)):
            if size > self.shard:
                raise ValueError(f"{what} {size} is larger than shard {self.shard}")
        if (self.core + 2 * self.halo) % 16:
            raise ValueError(
                f"core + 2 halo = {self.core + 2 * self.halo} must be a multiple of 16"
            )
        return self

    @property
    def window(self) -> int:
        """Pixels a side that the network sees."""
        return self.core + 2 * self.halo


class ServeSpec(Section):
    """How a model server runs a release (docs/serving.md)."""

    name: Name = Field("landcover", description="of the model that clients ask for")
    repository: str | None = Field(
        None,
        description="model repository that the servers read: folder or URL (s3://bucket/folder); "
        "default: --repository",
    )
    server: str | None = Field(
        None,
        description="model servers that a pipeline makes its release champion on: "
        "grpc://host:port[,host:port...]; default: none",
    )
    variant: Literal["fp32", "fp16", "int8"] = Field("fp32", description="of the release's graphs")
    max_batch: Annotated[int, Field(ge=1, le=256)] = Field(8, description="windows run at once")
    preferred_batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="sizes worth waiting for; default: as many as are there"
    )
    queue_delay_ms: Annotated[float, Field(ge=0)] = Field(
        2.0, description="how long a request waits for others to share its batch"
    )
    queue_limit: Annotated[int, Field(ge=0)] = Field(
        256, description="waiting requests above which more are refused; 0: no limit"
    )
    queue_timeout_s: Annotated[float, Field(ge=0)] = Field(
        120.0, description="waiting longer than this, a request is refused; 0: no limit"
    )
    instances: Annotated[int, Field(ge=1)] = Field(
        1, description="of the model on each device; two overlap copying with computing"
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="auto: every GPU that the server has, else the CPU"
    )
    threads: Annotated[int, Field(ge=0)] = Field(0, description="of an instance on a CPU; 0: all")
    tensorrt: Literal["fp32", "fp16", "int8"] | None = Field(
        None, description="compile the graph with TensorRT for the GPU, in this precision"
    )
    engine_cache: str = Field(
        "/var/cache/tensorrt", description="folder on the server that keeps compiled engines"
    )
    loaded: Annotated[int, Field(ge=1)] = Field(
        2,
        description="versions kept loaded: the champion, and those before it, for maps that began "
        "with them",
    )
    canary_class_agreement: Share = Field(
        0.999,
        description="of a server's answers and those recorded at export; below it no version is "
        "promoted; 1 where servers run the same onnxruntime on the same kind of CPU",
    )
    canary_probability_error: Share = Field(0.02, description="largest, on the same windows")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for wrong in (size for size in self.preferred_batches if size > self.max_batch):
            raise ValueError(f"preferred_batches: {wrong} is above max_batch {self.max_batch}")
        return self


class PublishSpec(Section):
    """What people get to see."""

    title: str | None = Field(None, description="of the report; default: the spec's name")
    release: ReleaseName | None = Field(
        None, description="name of the map release; default: the spec's name and the run's number"
    )
    zooms: Annotated[int, Field(ge=0, le=12)] = Field(4, description="places shown enlarged")
    zoom_size: Annotated[int, Field(ge=16)] = Field(96, description="pixels a side of a zoom")
    notes: tuple[str, ...] = Field((), description="what the reader must know about the data")
    front: DataPath | None = Field(
        None,
        description="front.json of the `terrafine compare --search` that the network was chosen "
        "by; the report draws its accuracy against its speed",
    )


class MapSpec(Section):
    """A whole run: imagery and a label product in, a published map out."""

    name: Annotated[Name, AfterValidator(_run_name)]
    recipe: Literal["terrafine", "dong2020"] = Field(
        DEFAULT,
        description="settings that the spec starts from: 'dong2020', the paper's, or 'terrafine', "
        "ours (docs/accuracy.md)",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    legend: str | Legend = Field("seven", description=f"one of {', '.join(LEGENDS)}, or your own")
    imagery: ImagerySpec
    champion: DataPlace | None = Field(
        None,
        description="map with this model and train none: the folder that `terrafine export` leaves "
        "(export/latest/release), under the data root or at a URL (s3://bucket/folder)",
    )
    labels: LabelSource | None = Field(
        None,
        description="what is learned from; with a `champion` it is only shown beside the map",
    )
    chips: ChipsSpec = ChipsSpec()
    filter: FilterSpec = FilterSpec()
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    prune: PruneSpec = PruneSpec()
    assess: AssessSpec | None = Field(
        None,
        description="with a `champion` the map is only held against a reference of region 'all', "
        "since nothing is kept from a training",
    )
    gate: GateSpec = GateSpec()
    export: ExportSpec = ExportSpec()
    map: MappingSpec = MappingSpec()
    serve: ServeSpec = ServeSpec()
    publish: PublishSpec = PublishSpec()

    @model_validator(mode="before")
    @classmethod
    def _start_from_recipe(cls, data: object) -> object:
        return with_recipe(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        legend = self.resolve_legend()
        self._has_what_it_needs()
        if self.labels is not None:
            self.labels.resolve_crosswalk(legend)
        if self.assess is not None:
            self.assess.reference.resolve_crosswalk(legend)
        if self.training.crop > self.chips.size:
            raise ValueError(
                f"training.crop {self.training.crop} is larger than chips.size {self.chips.size}"
            )
        named = {
            "gate.min_users_accuracy": self.gate.min_users_accuracy,
            "gate.min_producers_accuracy": self.gate.min_producers_accuracy,
        }
        if "class_weights" in self.training.model_fields_set:
            named["training.class_weights"] = self.training.class_weights
        else:
            self._weigh_only(legend.names)
        for where, classes in named.items():
            for wrong in set(classes) - set(legend.names):
                raise ValueError(
                    f"{where}: legend {legend.name!r} has no class {wrong!r}"
                    f"{did_you_mean(wrong, legend.names)}; it has {', '.join(legend.names)}"
                )
        return self

    def _weigh_only(self, classes: Sequence[str]) -> None:
        """Drop weights that nobody wrote of classes that there are not, as the paper's default
        has one; written out they would be errors."""
        weights = {k: w for k, w in self.training.class_weights.items() if k in classes}
        training = self.training.model_copy(update={"class_weights": weights})
        object.__setattr__(self, "training", training)  # the section is frozen

    def _has_what_it_needs(self) -> None:
        if self.champion is not None and self.map.predictor == "torch":
            raise ValueError(
                "map.predictor torch: the release that `champion` names holds graphs and no "
                "weights for torch; take onnx, openvino or triton"
            )
        missing = [key for key in ("labels", "assess") if getattr(self, key) is None]
        if missing and self.champion is None:
            raise ValueError(
                f"{' and '.join(f'key {key!r}' for key in missing)} missing: a model is taught by "
                "`labels` and judged by `assess`; or name a released model (`champion`) to map with"
            )

    @property
    def label_product(self) -> LabelSource:
        """The labels of a run that trains; SpecError where the spec names none."""
        if self.labels is None:
            raise SpecError(f"{self.name}: this takes a spec with `labels`; add them")
        return self.labels

    @property
    def assessment(self) -> AssessSpec:
        """How accuracy is estimated; SpecError where the spec does not say."""
        if self.assess is None:
            raise SpecError(f"{self.name}: this takes a spec with `assess`; add it")
        return self.assess

    def resolve_legend(self) -> Legend:
        """The legend meant; SpecError when its name is unknown."""
        if isinstance(self.legend, Legend):
            return self.legend
        if self.legend not in LEGENDS:
            raise SpecError(
                f"legend {self.legend!r} is unknown; known: {', '.join(LEGENDS)}; "
                "or write its classes into the spec"
            )
        return LEGENDS[self.legend]

    def class_weights(self) -> tuple[float, ...]:
        """Loss weight of every class in output order (others 1)."""
        return tuple(
            self.training.class_weights.get(name, 1.0) for name in self.resolve_legend().names
        )

    def digest(self, *keys: str) -> str:
        """SHA-256 over the named keys ("map", "gate.champion"), or over the whole spec.

        Settings of the machine (MACHINE_SETTINGS), which change no result, are left out.
        """
        data = self.model_dump(mode="json", exclude=MACHINE_SETTINGS)
        chosen = {key: reduce(lambda node, part: node[part], key.split("."), data) for key in keys}
        return hashlib.sha256(json.dumps(chosen or data, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The spec with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_spec(text: str, *, where: str, changes: Mapping[str, str] = NO_CHANGES) -> MapSpec:
    """A MapSpec from YAML text. SpecError names the key, the value and the remedy.

    ``changes``: dotted key ("map.region") -> value that replaces the text's.
    """
    try:
        data = load_yaml(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise SpecError(f"{where}: a spec is a YAML mapping; see `terrafine spec schema`")
    for key, value in changes.items():
        *sections, last = key.split(".")
        data = overlaid(data, reduce(lambda inner, part: {part: inner}, sections, {last: value}))
    try:
        return MapSpec.model_validate(data)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
    except ValidationError as error:
        raise SpecError(
            f"{where}: " + "; ".join(explain_validation(error, MapSpec.model_json_schema()))
        ) from error


def load_spec(path: Path, changes: Mapping[str, str] = NO_CHANGES) -> MapSpec:
    """A MapSpec from a YAML file, as :func:`parse_spec` does."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"{path}: the spec cannot be read: {reason}") from error
    return parse_spec(text, where=str(path), changes=changes)


def data_root(spec_file: Path, option: Path | None = None) -> Path:
    """Where the spec's relative paths start: --data, then TERRAFINE_DATA, then its folder."""
    chosen = option or os.environ.get(DATA_VARIABLE) or spec_file.parent
    root = Path(chosen).resolve()
    if not root.is_dir():
        raise SpecError(
            f"{root}: the data root is no folder; point --data or {DATA_VARIABLE} to the data"
        )
    return root


def resolve_in(root: Path, relative: str) -> Path:
    """``relative`` under ``root``, symbolic links followed; SpecError when that leaves the root."""
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise SpecError(f"{relative!r} leads out of the data root {root}; copy the data into it")
    return path
