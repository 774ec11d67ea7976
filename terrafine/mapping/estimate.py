"""What mapping a country takes, before anything is read: shards, pixels, bytes, hours, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import shapely
from pydantic import BaseModel, ConfigDict, Field

from terrafine.geometry import Window
from terrafine.legend import Legend
from terrafine.mapping.plan import Plan
from terrafine.raster import Mosaic
from terrafine.spec import MappingSpec

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]

_BYTES = 2  # of a uint16


class Resources(BaseModel):
    """The machines, and what is assumed of them.

    A worker is a core that reads, enhances and writes, and infers where there is no GPU.
    """

    model_config = ConfigDict(frozen=True)

    workers: int = Field(ge=1)
    gpus: int = Field(ge=0)
    mpixel_per_second: float = Field(gt=0)
    """inferred by one GPU or, without any, by one worker"""
    read_mb_per_second: float = Field(gt=0)
    """uint16 pixels, as they are after decompression, read by one worker"""
    price_worker_hour: float = Field(ge=0)
    price_gpu_hour: float = Field(ge=0)


class ZoneEstimate(BaseModel):
    """One zone of a plan.

    ``pixels``: that a scene covers, in planned shards. ``bytes``: of these, each read once.
    ``windows``: inferred at most, those around the shards that CLAHE needs too; without valid
    pixels a window is left out. ``window_pixels``, ``window_bytes``: in these, with their halos.
    """

    model_config = ConfigDict(frozen=True)

    zone: str
    crs: str
    scenes: int
    shards: int
    pixels: int
    area_km2: float
    bytes: int
    windows: int
    window_pixels: int
    window_bytes: int


class Estimate(BaseModel):
    """All zones, and the hours and cost on given machines.

    With GPUs, reading and inferring overlap, so the slower of them counts; without, the same
    cores do both. Writing and CLAHE, under a twentieth of a core beside them, are left out.
    """

    model_config = ConfigDict(frozen=True)

    resources: Resources
    zones: tuple[ZoneEstimate, ...]
    total: ZoneEstimate
    inference_hours: float
    reading_hours: float
    hours: float
    bound_by: str
    worker_cost: float
    gpu_cost: float
    cost: float


def estimate(
    plans: Sequence[Plan], mosaics: Mapping[str, Mosaic], spec: MappingSpec, resources: Resources,
    *, legend: Legend, pixel_km2: Mapping[str, float],
) -> Estimate:  # fmt: skip
    """What ``plans`` take on these machines. ``pixel_km2``: zone -> area of one pixel."""
    margin = spec.enhance.block if spec.enhance.enabled and legend.enhanced is not None else 0
    zones = tuple(
        _zone(plan, mosaics[plan.zone], spec, margin, pixel_km2[plan.zone]) for plan in plans
    )
    total = _total(zones)
    inferring = resources.gpus or resources.workers
    inference = total.window_pixels / 1e6 / (inferring * resources.mpixel_per_second) / 3600
    reading = total.window_bytes / 1e6 / (resources.workers * resources.read_mb_per_second) / 3600
    hours = max(inference, reading) if resources.gpus else inference + reading
    workers = hours * resources.workers * resources.price_worker_hour
    gpus = hours * resources.gpus * resources.price_gpu_hour
    return Estimate(
        resources=resources,
        zones=zones,
        total=total,
        inference_hours=inference,
        reading_hours=reading,
        hours=hours,
        bound_by="inference" if inference >= reading else "reading",
        worker_cost=workers,
        gpu_cost=gpus,
        cost=workers + gpus,
    )


def _zone(
    plan: Plan, mosaic: Mosaic, spec: MappingSpec, margin: int, pixel_km2: float
) -> ZoneEstimate:
    pixels = _covered_pixels(plan, mosaic)
    windows = _windows(plan, mosaic, spec.core, margin)
    window_pixels = windows * spec.window**2
    return ZoneEstimate(
        zone=plan.zone,
        crs=plan.grid.crs,
        scenes=len(mosaic.scenes),
        shards=len(plan.touched),
        pixels=pixels,
        area_km2=pixels * pixel_km2,
        bytes=pixels * mosaic.bands * _BYTES,
        windows=windows,
        window_pixels=window_pixels,
        window_bytes=window_pixels * mosaic.bands * _BYTES,
    )


def _total(zones: Sequence[ZoneEstimate]) -> ZoneEstimate:
    counted = ("scenes", "shards", "pixels", "area_km2", "bytes", "windows", "window_pixels",
               "window_bytes")  # fmt: skip
    sums = {name: sum(getattr(zone, name) for zone in zones) for name in counted}
    return ZoneEstimate(zone="all", crs="", **sums)


def _covered_pixels(plan: Plan, mosaic: Mosaic) -> int:
    """Pixels of planned shards that lie in a scene, each counted once."""
    if not plan.touched:
        return 0
    row, col, stop_row, stop_col = mosaic.edges
    scenes = shapely.union_all(shapely.box(col, row, stop_col, stop_row))
    shards = np.array([(w.col, w.row, w.stop_col, w.stop_row) for w in plan.touched], np.float64)
    planned = shapely.union_all(shapely.box(*shards.T))
    return round(float(shapely.intersection(scenes, planned).area))


def _windows(plan: Plan, mosaic: Mosaic, core: int, margin: int) -> int:
    """Windows that :func:`compute_shard` asks the model for, were every covered pixel valid.

    ``margin``: pixels around a shard that CLAHE needs.
    """
    # every edge of a window's wanted part lies on multiples of this, which divides the shard
    unit = min(core, margin) if margin else core
    around = plan.extent.buffered(margin).snapped(unit)
    sums = _summed(_touched_units(mosaic, around, unit))
    count = 0
    for shard in plan.touched:
        rows = _cuts(shard.row, shard.stop_row, margin, core, around.row, unit)
        cols = _cuts(shard.col, shard.stop_col, margin, core, around.col, unit)
        at = sums[np.ix_(rows, cols)]
        count += int(((at[1:, 1:] - at[:-1, 1:] - at[1:, :-1] + at[:-1, :-1]) > 0).sum())
    return count


def _cuts(start: int, stop: int, margin: int, core: int, origin: int, unit: int) -> Int64Array:
    """Where the lines of cores cut a shard with its margin, in units from ``origin``."""
    first, last = start - margin, stop + margin
    lines = np.arange(first // core * core, last + core, core).clip(first, last)
    return (np.unique(lines) - origin) // unit


def _touched_units(mosaic: Mosaic, around: Window, unit: int) -> BoolArray:
    """Which squares of ``unit`` pixels a scene touches."""
    touched = np.zeros((around.height // unit, around.width // unit), bool)
    row, col, stop_row, stop_col = mosaic.edges
    first_row, first_col = (row - around.row) // unit, (col - around.col) // unit
    last_row, last_col = -((around.row - stop_row) // unit), -((around.col - stop_col) // unit)
    for r0, r1, c0, c1 in zip(first_row, last_row, first_col, last_col, strict=True):
        touched[r0:r1, c0:c1] = True
    return touched


def _summed(touched: BoolArray) -> Int64Array:
    """Summed-area table with a first row and column of zeros."""
    sums = np.zeros((touched.shape[0] + 1, touched.shape[1] + 1), np.int64)
    touched.cumsum(axis=0, dtype=np.int64).cumsum(axis=1, out=sums[1:, 1:])
    return sums
