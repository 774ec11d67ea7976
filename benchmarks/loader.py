"""How fast random crops come out of a chip store that is larger than the memory allowed.

    python benchmarks/loader.py --gigabytes 8 --memory 1500

Builds stores of a quarter, a half and the whole size through `terrafine.chips.build_chips` (from
generated scenes), reads crops of each in a process whose memory, page cache included, is limited
by a cgroup where this machine allows one, and trains a small network on the largest (without that
limit: a network needs far more memory than its loader).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from imagery import write_project
from numcodecs.zstd import Zstd
from rich.console import Console
from rich.table import Table

from terrafine.chips import ChipStore, build_chips, local_runner, open_chips
from terrafine.models import RawInput, RawModel, build_network
from terrafine.raster import open_class_raster, open_mosaics
from terrafine.spec import ModelSpec, TrainingSpec, load_spec
from terrafine.storage import Storage
from terrafine.training import StepRecord, train

RESULT = Path(__file__).parent / "results" / "loader.json"
# Crops whose compressed chunks are decoded once more for comparison.
COMPARED = 24


@dataclass(frozen=True)
class Reading:
    """What reading random crops from one store took. Per core: by CPU time of the process."""

    chips: int
    raw_gigabytes: float
    open_seconds: float
    crops: int
    crops_per_second: float
    crops_per_core_second: float
    share_of_raw_decompression: float
    megabytes_decoded_per_crop: float
    peak_memory_megabytes: float


@dataclass(frozen=True)
class Waiting:
    """What a real training on this machine's CPU waits for its chips."""

    network: str
    steps: int
    seconds_per_step: float
    share_of_step_waiting: float


def main() -> None:
    options = _options()
    if options.measure:
        _measure(options)
        return
    with tempfile.TemporaryDirectory(prefix="loader-", dir=options.folder) as folder:
        result = _whole(options, Path(folder))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    _show(result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=0.5, help="raw, of the largest store")
    parser.add_argument("--memory", type=int, default=1500, help="MB that reading may take")
    parser.add_argument("--chip", type=int, default=1024)
    parser.add_argument("--crop", type=int, default=513)
    parser.add_argument("--crops", type=int, default=400, help="read from every store")
    parser.add_argument("--steps", type=int, default=8, help="of the training; 0: none")
    parser.add_argument("--arch", default="hrnet_w4", help="network of the training")
    parser.add_argument("--workers", type=int, default=1, help="processes that build")
    parser.add_argument("--url", help="bucket for the stores; default: a folder")
    parser.add_argument("--folder", help="for the stores; removed at the end")
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def _whole(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    chip_bytes = options.chip**2 * 9
    readings, building, training = [], {}, {}
    for part in (4, 2, 1):
        chips = max(16, round(options.gigabytes * 1e9 / chip_bytes / part))
        place = Storage.at(options.url or folder) / f"chips-{part}"
        building = _build(folder / "project", place, chips, options)
        with _cage(options.memory * 2**20) as (limit, enter):
            readings.append(_measured("read", options, place, folder / "measured.json", enter))
        if part == 1 and options.steps:
            training = _measured("train", options, place, folder / "measured.json")
        shutil.rmtree(folder / "project")
        place.clear()
    return {
        "machine": {"processor": _processor(), "python": platform.python_version()},
        "options": {k: getattr(options, k) for k in ("gigabytes", "memory", "chip", "crop")},
        "storage": "bucket" if options.url else "disk",
        "memory_limited_by": limit,
        "building": building,
        "stores": readings,
        "training": training,
    }


def _build(
    project: Path, place: Storage, chips: int, options: argparse.Namespace
) -> dict[str, float]:
    spec = load_spec(write_project(project, chips=chips, size=options.chip))
    started = time.perf_counter()
    store = build_chips(
        place,
        spec=spec,
        mosaics=open_mosaics(spec.imagery, project),
        labels=open_class_raster(spec.label_product, spec.resolve_legend(), project),
        runner=local_runner(options.workers),
    )
    seconds = time.perf_counter() - started
    stored = sum(place.sizes().values())
    return {
        "chips": len(store),
        "workers": options.workers,
        "chips_per_second": round(len(store) / seconds, 2),
        "compression": round(len(store) * options.chip**2 * 9 / stored, 2),
        "objects": len(place.names()),
    }


def _measured(
    what: str,
    options: argparse.Namespace,
    place: Storage,
    result: Path,
    enter: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """What a process of its own finds."""
    arguments = ["--measure", what, "--folder", str(place), "--json", str(result)]
    for name in ("crop", "crops", "steps", "arch"):
        arguments += [f"--{name}", str(getattr(options, name))]
    subprocess.run([sys.executable, __file__, *arguments], check=True, preexec_fn=enter)
    return json.loads(result.read_text())


@contextmanager
def _cage(limit: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """A cgroup with its page cache inside the limit, or where none can be made RLIMIT_DATA."""
    for root, knob in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"terrafine-loader-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / knob).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        try:
            yield "cgroup", partial(_enter, group)
        finally:
            group.rmdir()
        return
    yield "RLIMIT_DATA", partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit))


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _measure(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    store = open_chips(options.folder)
    opened = time.perf_counter() - started
    found = (
        _read(store, options.crop, options.crops, opened)
        if options.measure == "read"
        else _train(store, options)
    )
    options.json.write_text(json.dumps(asdict(found)))


def _read(store: ChipStore, crop: int, count: int, opened: float) -> Reading:
    rng = np.random.default_rng(0)
    places = [
        (
            int(rng.integers(len(store))),
            *(int(n) for n in rng.integers(0, store.size - crop + 1, 2)),
        )
        for _ in range(count)
    ]
    store.crop(*places[0], crop)
    started, cpu = time.perf_counter(), time.process_time()
    for place in places:
        store.crop(*place, crop)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = _peak_memory()
    raw, decoded = _decompression(store, places[:COMPARED], crop)
    return Reading(
        chips=len(store),
        raw_gigabytes=round(len(store) * store.size**2 * 9 / 1e9, 2),
        open_seconds=round(opened, 3),
        crops=count,
        crops_per_second=round(count / seconds, 1),
        crops_per_core_second=round(count / cpu, 1),
        share_of_raw_decompression=round(raw / (cpu / count), 3),
        megabytes_decoded_per_crop=round(decoded / 1e6, 2),
        peak_memory_megabytes=round(peak / 1e6),
    )


def _decompression(
    store: ChipStore, places: list[tuple[int, ...]], crop: int
) -> tuple[float, float]:
    """CPU seconds to decompress the chunks of a crop and nothing else, and their raw bytes."""
    chunks = []
    for index, row, col in places:
        part = slice(row, row + crop), slice(col, col + crop)
        for name in ("image", "label"):
            found = store.shards.chunks(name, int(store.positions[index]), *part)
            chunks += [bytes(data) for data in found.values()]
    started = time.process_time()
    decoded = sum(len(Zstd().decode(chunk)) for chunk in chunks)
    return (time.process_time() - started) / len(places), decoded / len(places)


def _peak_memory() -> int:
    """Bytes; getrusage's figure would start from what the parent had when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


class _Notebook:
    """Remembers how long each step took, and how much of it was waiting."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def epoch(self, record: object) -> None:
        pass

    def checkpoint(self, step: int) -> None:
        pass


def _train(store: ChipStore, options: argparse.Namespace) -> Waiting:
    batch = 4
    chips = list(range(1, min(len(store), batch * options.steps + 1)))
    model = ModelSpec(arch=options.arch, stem_channels=16, first_norm="batch")
    network = build_network(model, bands=store.bands, classes=len(store.legend.classes), seed=0)
    notebook = _Notebook()
    with tempfile.TemporaryDirectory() as folder:
        train(
            store,
            train=chips,
            validation=[0],
            model=RawModel(RawInput([1000.0] * 4, [400.0] * 4, store.fill), network),
            legend=store.legend,
            class_weights=(1.0,) * len(store.legend.classes),
            spec=TrainingSpec(batch=batch, crop=options.crop, device="cpu"),
            epochs=1,
            seed=0,
            storage=Storage.at(folder),
            heading="train",
            observer=notebook,
        )
    # the first step waits for the first crops, as once in an epoch
    steps = notebook.steps[1:] or notebook.steps
    seconds = [record.pixels / record.pixels_per_second for record in steps]
    waited = [s * record.loader_wait for s, record in zip(seconds, steps, strict=True)]
    return Waiting(
        network=options.arch,
        steps=len(steps),
        seconds_per_step=round(sum(seconds) / len(steps), 3),
        share_of_step_waiting=round(sum(waited) / sum(seconds), 4),
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(
        title=f"Random {result['options']['crop']}-crops of {result['options']['chip']}-chips, "
        f"memory limited to {result['options']['memory']} MB by {result['memory_limited_by']}"
    )
    stores = result["stores"]
    table.add_column("")
    for store in stores:
        table.add_column(f"{store['raw_gigabytes']:g} GB", justify="right")
    for key in list(stores[0])[2:]:
        table.add_row(key.replace("_", " "), *(f"{store[key]:g}" for store in stores))
    console.print(table)
    for name in ("building", "training"):
        if result[name]:
            figures = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in result[name].items())
            console.print(f"{name}: {figures}")


if __name__ == "__main__":
    main()
