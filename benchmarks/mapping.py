"""The mapper against what people use today: same raster, same graph, same overlap, this machine.

    python benchmarks/mapping.py                            # about 35 minutes on two quiet cores
    python benchmarks/mapping.py --sections small --rounds 1
    python benchmarks/mapping.py --peers VENV/bin/python     # with dask, rioxarray and torchgeo

Every way runs in a process of its own (mapping_ways.py), in turns, so that ratios hold on a busy
machine. Networks are drawn at random: no figure depends on what they have learnt.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import rasterio
from affine import Affine
from mapping_ways import Job
from rich.console import Console
from rich.table import Table

from terrafine.export import BundleInfo, load_bundle, save_bundle
from terrafine.export.graph import export_onnx
from terrafine.legend import SEVEN
from terrafine.models import RawInput, RawModel, build_network
from terrafine.models.layers import BatchNorm
from terrafine.spec import ExportSpec, ModelSpec

RESULT = Path(__file__).parent / "results" / "mapping.json"
WAYS = Path(__file__).parent / "mapping_ways.py"
ROOT = Path(__file__).parents[1]
BANDS = ("red", "green", "blue", "nir")
AIMS = {
    "paper": "1.8x the plain loop", "small": "1.3x the plain loop, 4x each framework",
    "memory": "1.5x the plain loop's", "host": "0.06 core-seconds per Mpixel, network left out",
    "overhead": "5 % of the core-seconds at the paper's size",
}  # fmt: skip
PEERS = ("dask", "torchgeo", "torchgeo, same graph")
_POLL = 0.1


@dataclass(frozen=True)
class Section:
    """Ways that are compared on one raster with one network."""

    name: str
    side: int
    arch: str
    ways: tuple[str, ...]
    rounds: int


@dataclass(frozen=True)
class Turn:
    """One run of one way. ``memory``: peak PSS in MB, model and imports included."""

    section: str
    way: str
    seconds: float
    core_seconds: float
    memory: float
    steps: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON."""
    options = _options(arguments)
    turns: list[Turn] = []
    sections = [s for s in _sections(options) if s.name in options.sections]
    with tempfile.TemporaryDirectory(prefix="mapping-") as folder:
        root = Path(folder)
        for section in sections:
            job = _prepared(section, options, root)
            for turn in range(section.rounds):
                for way in section.ways:
                    if way not in PEERS or options.peers:
                        turns.append(_run(section, way, job, root / f"out-{turn}", options))
                        _say(turns[-1])
    rows = [row for section in sections for row in _rows(section, turns)]
    result = {**_circumstances(options), "aims": AIMS, "rows": rows, **_host(rows, options),
              "turns": [asdict(turn) for turn in turns]}  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    Console(width=120).print(_table(rows))
    for way, share in result.get("own_overhead", {}).items():
        print(f"{way} at the paper's size: own overhead {100 * share:.1f} % of its core-seconds")
    return result


def _sections(options: argparse.Namespace) -> list[Section]:
    ours = ("terrafine onnx", *(f"terrafine {e}" for e in options.engines))
    paper, small, rounds = options.paper, options.small, options.rounds
    return [
        Section("paper", options.paper_side, paper, ("plain", *ours), rounds),
        Section("small", options.side, small, ("plain", *ours, *PEERS), rounds),
        Section("host", options.side, "",
                tuple(options.host_ways), rounds),
    ]  # fmt: skip


def _prepared(section: Section, options: argparse.Namespace, root: Path) -> Job:
    """The raster and the graph of a section, made once."""
    # a folder of its own: torchgeo takes all files of one
    raster = root / f"raster-{section.side}" / "scene.tif"
    if not raster.exists():
        raster.parent.mkdir()
        write_raster(raster, section.side)
    graph, bundle = root / f"{section.arch}.onnx", root / section.arch
    window = options.core + 2 * options.halo
    if section.arch and not graph.exists():
        _export(section.arch, bundle, graph, window)
    return Job(
        raster=str(raster), graph=str(graph) if section.arch else "", bundle=str(bundle), into="",
        core=options.core, halo=options.halo, block=options.block,
        # of a raster smaller than a shard not more than there is
        shard=min(options.shard, -(-section.side // options.core) * options.core),
        threads=options.threads, enhanced=SEVEN.code_of("impervious"),
    )  # fmt: skip


def write_raster(path: Path, side: int) -> None:
    """uint16, four bands, deflate in blocks of 512, with the entropy of a sensor."""
    rng, tile = np.random.default_rng(0), min(side, 2048)
    bands = []
    for _ in BANDS:
        smooth = cv2.resize(rng.normal(size=(tile // 32 + 2,) * 2), (tile, tile))
        noisy = 600 + 300 * smooth + rng.normal(0, 20, (tile, tile))
        bands.append(noisy.clip(1, 10_000).astype(np.uint16))
    strip_CHW = np.tile(np.stack(bands), (1, 1, -(-side // tile)))[:, :, :side]
    profile = {
        "driver": "GTiff", "count": 4, "height": side, "width": side, "dtype": "uint16",
        "crs": "EPSG:32650", "transform": Affine(3, 0, 3.0 * 2**17, 0, -3, 3.0 * 2**20),
        "nodata": 0, "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate",
        "predictor": 2, "num_threads": "all_cpus",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        for row in range(0, side, tile):
            height = min(tile, side - row)
            place = rasterio.windows.Window(0, row, side, height)
            file.write(strip_CHW[:, :height], window=place)


def _export(arch: str, bundle: Path, graph: Path, window: int) -> None:
    """A network that nobody trained, as weights and as a graph."""
    model = ModelSpec(arch=arch)
    network = build_network(model, bands=len(BANDS), classes=len(SEVEN.classes)).eval()
    for norm in network.modules():
        if isinstance(norm, BatchNorm):
            # residual blocks start as the identity; a trained one computes something
            norm.weight.data.fill_(0.5)
    mean, std = (600.0,) * len(BANDS), (300.0,) * len(BANDS)
    raw = RawModel(RawInput(mean, std, 0), network).eval()
    info = BundleInfo(model=model, bands=BANDS, fill=0, mean=mean, std=std, legend=SEVEN)
    save_bundle(bundle, raw, info)
    loaded, sealed = load_bundle(bundle)
    export_onnx(loaded, graph, window=window, spec=ExportSpec(), info=sealed)


def _run(section: Section, way: str, job: Job, into: Path, options: argparse.Namespace) -> Turn:
    """One way in a process of its own, its memory watched from here."""
    named = replace(job, into=str(into.with_name(f"{section.name}-{way}-{into.name}")))
    told = into.with_name("job.json")
    told.write_text(json.dumps(asdict(named)))
    python = options.peers if way in PEERS else sys.executable
    threads = str(job.threads)
    process = subprocess.Popen(
        [python, WAYS, way, told],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)},
    )
    memory = 0.0
    while process.poll() is None:
        memory = max(memory, _pss(process.pid))
        time.sleep(_POLL)
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{section.name}, {way}: ended with {process.returncode}; see above")
    found = json.loads(output.strip().splitlines()[-1])
    return Turn(section.name, way, found["seconds"], found["core_seconds"], memory,
                found.get("steps", {}))  # fmt: skip


def _pss(process: int) -> float:
    """Proportional set size in MB; 0 once the process is gone."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    except OSError:
        pass
    return 0.0


def _rows(section: Section, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Medians over the rounds; ratios to the section's first way in the same round."""
    of = {way: [t for t in turns if (t.section, t.way) == (section.name, way)]
          for way in section.ways}  # fmt: skip
    base, rows = of[section.ways[0]], []
    for way, taken in of.items():
        if not taken:
            continue
        middle = sorted(taken, key=lambda t: t.seconds)[len(taken) // 2]
        mpixel = section.side**2 / 1e6
        rows.append({
            "section": section.name,
            "way": way,
            "side": section.side,
            "seconds": statistics.median(t.seconds for t in taken),
            "mpixel_per_second": mpixel / statistics.median(t.seconds for t in taken),
            "times_as_fast": statistics.median(
                a.seconds / b.seconds for a, b in zip(base, taken, strict=True)),
            "core_seconds_per_mpixel": statistics.median(t.core_seconds for t in taken) / mpixel,
            "memory_mb": max(t.memory for t in taken),
            "memory_ratio": max(t.memory for t in taken) / max(t.memory for t in base),
            "seconds_per_mpixel": {k: v / mpixel for k, v in middle.steps.items()},
        })  # fmt: skip
    return rows


def _host(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """What the mapper costs beside the network.

    ``core_seconds_per_mpixel``: of the steps of a worker, which each keep one core busy, per
    million map pixels; read per million window pixels (benchmarks/scaling.py starts from these).
    ``own_overhead``: of what a way at the paper's size takes, the share that is neither inferring
    nor the floor's reading and compressing: all of the mapper's cost without a network but those.
    """
    of = {(row["section"], row["way"]): row for row in rows}
    if not {("host", "terrafine nothing"), ("host", "floor")} <= of.keys():
        return {}
    host, floor = of["host", "terrafine nothing"], of["host", "floor"]["seconds_per_mpixel"]
    steps = host["seconds_per_mpixel"]
    seen = ((options.core + 2 * options.halo) / options.core) ** 2
    own = host["core_seconds_per_mpixel"] - floor["read"] - floor["write"]
    return {
        "core_seconds_per_mpixel": {
            "read": steps["read"] / seen, "enhance": steps["enhance"], "write": steps["write"],
        },
        "own_overhead": {
            way: own / row["core_seconds_per_mpixel"]
            for (section, way), row in of.items()
            if section == "paper" and way.startswith("terrafine")
        },
    }  # fmt: skip


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    drawn = Table("section", "way", "s", "Mpx/s", "times as fast", "core-s/Mpx", "MB", "memory",
                  "s/Mpx by step")  # fmt: skip
    for row in rows:
        drawn.add_row(
            f"{row['section']} {row['side']}²", row["way"], f"{row['seconds']:.1f}",
            f"{row['mpixel_per_second']:.2f}", f"{row['times_as_fast']:.2f}",
            f"{row['core_seconds_per_mpixel']:.3f}", f"{row['memory_mb']:.0f}",
            f"{row['memory_ratio']:.2f}",
            " ".join(f"{k} {v:.3f}" for k, v in row["seconds_per_mpixel"].items()),
        )  # fmt: skip
    return drawn


def _say(turn: Turn) -> None:
    print(
        f"{turn.section}, {turn.way}: {turn.seconds:.1f} s, {turn.core_seconds:.1f} core-s, "
        f"{turn.memory:.0f} MB",
        flush=True,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = ("paper", "small", "host")
    parser.add_argument("--sections", nargs="+", default=names, choices=names)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paper", default="hrnet_w24", help="network of the paper's size")
    parser.add_argument("--small", default="unet_w10", help="a network 23 times smaller")
    parser.add_argument("--paper-side", type=int, default=2048)
    parser.add_argument("--side", type=int, default=8000)
    parser.add_argument("--core", type=int, default=1024)
    parser.add_argument("--halo", type=int, default=128)
    parser.add_argument("--shard", type=int, default=8192)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--engines", nargs="*", default=["openvino", "bfloat16"])
    host = ("terrafine nothing", "terrafine nothing, Ray", "floor")
    parser.add_argument("--host-ways", nargs="+", default=host, choices=host)
    parser.add_argument("--peers", help="python that has dask, rioxarray, xarray and torchgeo")
    parser.add_argument("--json", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    kept = ("rounds", "paper", "small", "core", "halo", "shard", "block", "threads")
    return {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
        **{k: getattr(options, k) for k in kept},
    }


if __name__ == "__main__":
    main()
