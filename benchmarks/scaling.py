"""From 1 to 64 GPUs: how fast a country is mapped, and what holds it back at each size.

    python benchmarks/scaling.py                     # simulates; measures 1 and 2 workers here
    python benchmarks/scaling.py --cores 8 --gpu 500 # other machines, a faster network

Workers take shards, the driver takes their receipts one after the other and commits in waves: that
queue is simulated, event by event. What a shard costs a worker is counted from measured costs per
pixel (results/mapping.json, results/national_dry_run.json) where these are there, otherwise from
the figures stated in ``Costs``; machines and network are assumed. All of it is printed and kept.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from serving.mapper.runner import RayShardRunner
from terrafine.export import BundleInfo, export_onnx
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.mapping import OnnxPredictor, ShardReceipt, map_all
from terrafine.models import RawInput, RawModel, build_network
from terrafine.raster import Mosaic, open_mosaics, write_geotiff
from terrafine.spec import EnhanceSpec, ExportSpec, ImagerySpec, MappingSpec, ModelSpec

RESULTS = Path(__file__).parent / "results"
SIZES = (1, 2, 4, 8, 16, 32, 64)
# how the map is cut that is measured here
CUT = MappingSpec(core=256, halo=64, shard=256, enhance=EnhanceSpec(enabled=False, block=256))
# shards of one worker on their way at the same time, as serving.mapper hands them out
IN_FLIGHT = 2
# no two shards cost the same: clouds, coasts, busy disks
JITTER = 0.1


class Costs(BaseModel):
    """What a shard costs. Defaults: facts measured on 2 cores (docs/mapping.md), or stated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int = 17_827
    pixels: float = 1.1517e12
    window_pixels: float = 2.819e12
    """with halos and the blocks around each shard that CLAHE needs, as the mapper infers them"""
    read: float = 0.032
    """core-seconds per million window pixels: 8 bytes at 250 MB/s of deflate"""
    enhance: float = 0.0026
    """core-seconds per million map pixels"""
    write: float = 0.022
    """core-seconds per million map pixels: three arrays compressed and their checksums"""
    driver: float = 0.002
    """seconds of the driver's only thread for each receipt"""
    commit: float = 0.02
    """seconds for each wave, beside what the store's distance adds"""


@dataclass(frozen=True)
class Site:
    """The machines; assumed, not measured.

    ``gpu``: Mpixel/s of windows that a GPU infers (35 % of an H100's limit on the paper's network).
    ``nic``: GB/s of a node; ``packed``: raw bytes over bytes read, of deflate. ``requests``: GETs
    per second that the scenes' bucket answers, over all prefixes; ``per_window``: GETs of a window.
    ``distance``: seconds that a commit waits for S3, some five requests one after the other.
    """

    gpu: float = 184.0
    cores: int = 16
    gpus_per_node: int = 8
    nic: float = 12.5
    packed: float = 1.6
    requests: float = 11 * 5500.0
    per_window: float = 4.0
    distance: float = 0.2
    wave: int = MappingSpec().wave


def load_costs(folder: Path) -> tuple[Costs, dict[str, str]]:
    """Costs as far as benchmarks have measured them, and where each that was comes from."""
    found: dict[str, float] = {}
    source: dict[str, str] = {}

    def take(name: str, file: str, value: float) -> None:
        found[name], source[name] = value, file

    plan = _read(folder / "plan_country.json").get("plan", {}).get("total", {})
    for name in ("shards", "pixels", "window_pixels"):
        if name in plan:
            take(name, "plan_country.json", plan[name])
    per_pixel = _read(folder / "mapping.json").get("core_seconds_per_mpixel", {})
    for name in ("read", "enhance", "write"):
        if name in per_pixel:
            take(name, "mapping.json", per_pixel[name])
    dry = _read(folder / "national_dry_run.json")
    if dry:
        take("commit", "national_dry_run.json", max(t["median"] for t in dry["commit_ms"]) / 1e3)
        take("driver", "national_dry_run.json", dry["driver_cpu_ms_per_shard"] / 1e3)
    return Costs.model_validate(found), source


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


@dataclass(frozen=True)
class Shard:
    """Seconds of one shard on one worker (one GPU and its cores), by what they are spent on."""

    gpu: float
    cores: float
    network: float

    @classmethod
    def of(cls, costs: Costs, site: Site) -> Shard:
        """Of an average one: shards are not full, and windows overlap."""
        mapped = costs.pixels / costs.shards / 1e6
        windows = costs.window_pixels / costs.shards / 1e6
        busy = costs.read * windows + (costs.enhance + costs.write) * mapped
        sent = windows * 8e6 / site.packed / 1e9
        return cls(windows / site.gpu, busy / site.cores, sent * site.gpus_per_node / site.nic)

    @property
    def cycle(self) -> float:
        """From one shard to the next on a worker where everything overlaps."""
        return max(self.gpu, self.cores, self.network)


def simulate(costs: Costs, site: Site, gpus: int, *, seed: int = 0) -> dict[str, Any]:
    """Hours, speed, and how busy everything is, with so many GPUs."""
    shard = Shard.of(costs, site)
    jitter = np.random.default_rng(seed).uniform(1 - JITTER, 1 + JITTER, costs.shards)
    # the bucket answers all workers together
    windows = costs.window_pixels / costs.shards / MappingSpec().window ** 2
    asked = gpus * windows * site.per_window / site.requests
    cycle = max(shard.cycle, asked)
    free = [0.0] * gpus
    arrivals: list[tuple[float, int]] = []
    waiting = iter(jitter)

    def hand_out(worker: int, now: float) -> None:
        for times in waiting:
            free[worker] = max(free[worker], now) + cycle * times
            heapq.heappush(arrivals, (free[worker], worker))
            return

    for _ in range(IN_FLIGHT):
        for worker in range(gpus):
            hand_out(worker, 0.0)
    now = driving = 0.0
    pending = 0
    while arrivals:
        arrived, worker = heapq.heappop(arrivals)
        pending += 1
        took = costs.driver
        if pending == site.wave or not arrivals:
            took += costs.commit + site.distance
            pending = 0
        now = max(now, arrived) + took
        driving += took
        hand_out(worker, now)
    share = costs.shards / gpus / now
    busy = {
        "GPUs": shard.gpu * share,
        "reading cores": shard.cores * share,
        "network": shard.network * share,
        "bucket requests": asked * share,
        "driver and commits": driving / now,
    }
    return {
        "gpus": gpus,
        "hours": now / 3600,
        "mpixel_per_second": costs.pixels / now / 1e6,
        "busy": busy,
        "bottleneck": max(busy, key=lambda name: busy[name]),
    }


def cores_needed(costs: Costs, site: Site) -> float:
    """Cores a GPU must have beside it so that they are not what it waits for."""
    shard = Shard.of(costs, site)
    return shard.cores * site.cores / shard.gpu


def prepare(folder: Path, arch: str, shards: int) -> tuple[Mosaic, Path]:
    """A deflated scene of noise for so many shards, and a network's exported graph."""
    size = math.isqrt(shards) * CUT.shard
    window, grid = Window(0, 0, size, size), PixelGrid("EPSG:32650", 3.0, 3.0, 0.0, 0.0)
    noise = np.random.default_rng(0).integers(1, 300, (4, size, size), np.uint16)
    bands = ("red", "green", "blue", "nir")
    write_geotiff(
        folder / "scene.tif", noise, grid, window, nodata=0, legend=None, description=bands
    )
    scenes = {"scenes": [{"name": "noise", "files": ["scene.tif"]}], "nodata": 0}
    (mosaic,) = open_mosaics(ImagerySpec.model_validate(scenes), folder).values()
    model = ModelSpec(arch=arch)
    network = build_network(model, bands=4, classes=len(SEVEN.classes)).eval()
    mean, std = (150.0,) * 4, (80.0,) * 4
    raw = RawModel(RawInput(mean, std, 0), network)
    info = BundleInfo(model=model, bands=bands, fill=0, mean=mean, std=std, legend=SEVEN)
    export_onnx(raw, folder / "graph.onnx", window=CUT.window, spec=ExportSpec(), info=info)
    return mosaic, folder / "graph.onnx"


class _Arrivals:
    """When each shard was there."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def started(self, planned: int, done: int) -> None:
        pass

    def shard(self, receipt: ShardReceipt) -> None:
        self.at.append(time.monotonic())

    def commit(self, shards: int, seconds: float) -> None:
        pass


def measured(mosaic: Mosaic, graph: Path, folder: Path, workers: int) -> float:
    """Shards per second of a map on so many Ray workers here, each with one thread to infer."""
    arrivals = _Arrivals()
    map_all(
        folder / f"{workers}.icechunk",
        {mosaic.zone: mosaic},
        partial(OnnxPredictor, graph, threads=1),
        spec=CUT.model_copy(update={"workers": workers}),
        legend=SEVEN, scenes=["noise"], model_digest="noise", spec_digest="noise",
        run=RayShardRunner(workers), observer=arrivals,
    )  # fmt: skip
    # without the start, and without the end, when not every worker has a shard left
    kept = arrivals.at[IN_FLIGHT * workers : -IN_FLIGHT * workers]
    return (len(kept) - 1) / (kept[-1] - kept[0])


def speed_up(arch: str, shards: int) -> dict[str, Any]:
    """1 worker and 2 on this machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mosaic, graph = prepare(folder, arch, shards)
        speeds = {n: measured(mosaic, graph, folder, n) for n in (1, 2)}
    mpixel = {str(n): round(speed * CUT.shard**2 / 1e6, 3) for n, speed in speeds.items()}
    return {"arch": arch, "mpixel_per_second": mpixel, "speed_up": speeds[2] / speeds[1]}


def draw(path: Path, curves: Mapping[int, Sequence[dict[str, Any]]], site: Site) -> None:
    """Speed against GPUs for several numbers of cores beside each."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="GPUs", ylabel="map, Mpixel/s", xscale="log", yscale="log")
    for cores, rows in curves.items():
        gpus = [row["gpus"] for row in rows]
        axes.plot(gpus, [row["mpixel_per_second"] for row in rows], marker="o",
                  label=f"{cores} cores a GPU: {rows[-1]['bottleneck']}")  # fmt: skip
    best = [row["mpixel_per_second"] / row["busy"]["GPUs"] for row in curves[site.cores]]
    axes.plot(gpus, best, color="0.6", linestyle=":", label="GPUs never waiting")
    axes.set_xticks(gpus, [str(count) for count in gpus])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="and what holds 64 GPUs back")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, format="png")


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """For the terminal."""
    names = list(rows[0]["busy"])
    drawn = Table("GPUs", "hours", "Mpixel/s", *names, "held back by", title="simulated")
    for row in rows:
        shares = (f"{100 * row['busy'][name]:.0f} %" for name in names)
        drawn.add_row(str(row["gpus"]), f"{row['hours']:.2f}", f"{row['mpixel_per_second']:,.0f}",
                      *shares, row["bottleneck"])  # fmt: skip
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, measure; print the table, write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gpu", type=float, default=Site.gpu, help="Mpixel/s of one GPU")
    parser.add_argument("--cores", type=int, default=Site.cores, help="beside each GPU")
    parser.add_argument("--shards", type=int, help="simulated; default: the country's")
    parser.add_argument("--measure", type=int, default=64, help="shards mapped here; 0: none")
    parser.add_argument("--arch", default="unet_w16", help="of the network that maps them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the costs")
    parser.add_argument("--json", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args(arguments)
    costs, source = load_costs(options.results)
    if options.shards:
        part = options.shards / costs.shards
        costs = costs.model_copy(update={"shards": options.shards, "pixels": costs.pixels * part,
                                         "window_pixels": costs.window_pixels * part})  # fmt: skip
    site = Site(gpu=options.gpu, cores=options.cores)
    curves = {
        cores: [simulate(costs, replace(site, cores=cores), gpus) for gpus in SIZES]
        for cores in sorted({4, 8, 16, options.cores})
    }
    result = {
        "machine": {"machine": platform.machine(), "processors": os.cpu_count()},
        "costs": costs.model_dump(),
        "measured_by": source,
        "site": asdict(site),
        "cores_needed_per_gpu": cores_needed(costs, site),
        "simulated": {str(cores): rows for cores, rows in curves.items()},
    }
    if options.measure:
        result["measured"] = speed_up(options.arch, options.measure)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    draw(options.json.with_suffix(".png"), curves, site)
    Console().print(table(curves[options.cores]))
    print(f"cores that keep one GPU busy: {result['cores_needed_per_gpu']:.1f}")
    if options.measure:
        print(f"2 workers here: {result['measured']['speed_up']:.2f} times 1")


if __name__ == "__main__":
    main()
