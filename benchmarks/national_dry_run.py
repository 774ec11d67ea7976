"""All shards of a country through real Ray into a real map store, with nothing to read or infer.

    python benchmarks/national_dry_run.py                 # China's size: 17 827 shards in 11 zones
    python benchmarks/national_dry_run.py --area 100000   # a small country, to try it

The country of ``plan_country.py`` is planned, mapped by Ray actors and committed in waves as any
map is, but the reader and the predictor make things up and a shard is 256 pixels a side instead of
8192: shards, actors, receipts, commits, chunks and files are as many as in the real run, pixels
1024 times fewer. At half of it the driver is killed, and started again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from plan_country import AREA_KM2, write_country
from rich.console import Console
from rich.table import Table

from serving.mapper.runner import RayShardRunner
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapStore, Prediction, ShardReceipt, map_all
from terrafine.mapping.write import ShardKey
from terrafine.raster import Mosaic, Region, open_mosaics, scene_names
from terrafine.spec import EnhanceSpec, MappingSpec, load_spec

RESULTS = Path(__file__).parent / "results" / "national_dry_run.json"
PLANNED = RESULTS.with_name("plan_country.json")
REAL = MappingSpec()
SHARD = 256
COARSER = REAL.shard // SHARD
SETTINGS = MappingSpec(
    core=SHARD, halo=0, shard=SHARD, enhance=EnhanceSpec(enabled=False, block=SHARD)
)
# of an H100 on the paper's network, in pixels a second (docs/catalogue.md)
GPU_PIXELS = 184e6
RESUME_AIM = 30.0
# Chunks of fewer bytes would be kept inside Icechunk's manifests, which no real shard's are.
_NOISY_ROWS = 16


@dataclass(frozen=True)
class NullImagery:
    """A zone's real scenes on pixels 32 times larger; what is read is the same everywhere."""

    mosaic: Mosaic

    @property
    def zone(self) -> str:
        return self.mosaic.zone

    @property
    def grid(self) -> PixelGrid:
        grid = self.mosaic.grid
        return PixelGrid(grid.crs, grid.dx * COARSER, grid.dy * COARSER, grid.x0, grid.y0)

    @property
    def window(self) -> Window:
        whole = self.mosaic.window.snapped(REAL.shard)
        return Window(*(n // COARSER for n in (whole.row, whole.col, whole.height, whole.width)))

    @property
    def fill(self) -> int:
        return self.mosaic.fill

    @property
    def unreadable(self) -> Mapping[str, str]:
        return {}

    def touches(self, window: Window) -> bool:
        whole = (n * COARSER for n in (window.row, window.col, window.height, window.width))
        return self.mosaic.touches(Window(*whole))

    def read(self, window: Window) -> Any:
        image = np.full((self.mosaic.bands, SHARD, SHARD), self.fill + 1, np.uint16)
        source = np.ones((SHARD, SHARD), np.uint16)
        source[:_NOISY_ROWS] = np.random.default_rng(1).integers(1, 9, (_NOISY_ROWS, SHARD))
        return image, source


class NullPredictor:
    """The same answer to every window."""

    window = SHARD

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        zeros = np.zeros((1, SHARD, SHARD), np.uint8)
        code, sure = zeros + np.uint8(SEVEN.codes[0]), zeros + np.uint8(200)
        code[:, :_NOISY_ROWS] = rng.choice(SEVEN.codes, (1, _NOISY_ROWS, SHARD))
        sure[:, :_NOISY_ROWS] = rng.integers(100, 255, (1, _NOISY_ROWS, SHARD))
        self._said = Prediction(zeros, code, sure)

    def predict(self, windows_NCHW: Any) -> Prediction:
        return self._said


class Diary:
    """Writes down what the driver goes through, a line of JSON each; survives its death."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._first = True
        self._cpu = 0.0

    def tell(self, what: str, **figures: Any) -> None:
        line = {"what": what, "at": time.time(), "cpu": time.process_time(),
                "rss_mb": round(_rss() / 1e6, 1), **figures}  # fmt: skip
        self._file.write(json.dumps(line) + "\n")

    def served(self, model: object) -> None:
        pass

    def started(self, planned: Collection[ShardKey], done: Collection[ShardKey]) -> None:
        self.tell("started", planned=len(planned), done=len(done))

    def shard(self, receipt: ShardReceipt) -> None:
        if self._first:
            self._first = False
            self.tell("first shard", bytes=len(receipt.changes))
        self._cpu = time.process_time()

    def commit(self, shards: int, seconds: float) -> None:
        self.tell("commit", shards=shards, seconds=seconds,
                  cpu_seconds=time.process_time() - self._cpu)  # fmt: skip


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def drive(root: Path, *, workers: int, wave: int) -> None:
    """The driver's process: plan the country, map it, or what is left of it."""
    diary = Diary(root / "diary.jsonl")
    diary.tell("begin")
    spec = load_spec(root / "spec.yaml")
    mosaics = open_mosaics(spec.imagery, root)
    region: Region = Region.read("country.gpkg", root, key="map.region")
    done = map_all(
        root / "map.icechunk",
        {zone: NullImagery(mosaic) for zone, mosaic in mosaics.items()},
        NullPredictor,
        spec=SETTINGS.model_copy(update={"wave": wave}),
        legend=SEVEN,
        scenes=scene_names(mosaics),
        model_digest="null",
        spec_digest="dry run",
        region=region,
        run=RayShardRunner(workers),
        observer=diary,
    )
    diary.tell("end", shards=done.shards, mapped=done.mapped, resumed=done.resumed)


def run(root: Path, *, area_km2: float, workers: int, wave: int) -> dict[str, Any]:
    """Both halves of the run; the figures."""
    write_country(root, area_km2=area_km2)
    command = [sys.executable, __file__, "--drive", root, "--workers", workers, "--wave", wave]
    start = partial(subprocess.Popen, list(map(str, command)), start_new_session=True)
    began = time.time()
    driver = start()
    while driver.poll() is None and not _halfway(root / "diary.jsonl"):
        time.sleep(0.05)
    if driver.poll() is not None:
        raise SystemExit(f"the driver ended by itself, with {driver.returncode}")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    killed = time.time()
    again = start()
    if again.wait():
        raise SystemExit(f"the second driver ended with {again.returncode}")
    return figures(_read(root / "diary.jsonl"), began, killed, root)


def _halfway(path: Path) -> bool:
    events = _read(path)
    planned = next((e["planned"] for e in events if e["what"] == "started"), math.inf)
    return sum(e["shards"] for e in events if e["what"] == "commit") >= planned / 2


def _read(path: Path) -> list[dict[str, Any]]:
    # a line that is being written has no end yet
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def figures(
    events: Sequence[dict[str, Any]], began: float, killed: float, root: Path
) -> dict[str, Any]:
    """What the diary says, first half and second."""
    halves = [[e for e in events if (e["at"] < killed) == first] for first in (True, False)]
    (before, after) = ({e["what"]: e for e in reversed(half)} for half in halves)
    commits = [e for e in events if e["what"] == "commit"]
    # from the first shard to the last commit, of each half
    mapping = [[e for e in half if e["what"] in ("first shard", "commit")] for half in halves]
    seconds = sum(part[-1]["at"] - part[0]["at"] for part in mapping)
    cpu = sum(part[-1]["cpu"] - part[0]["cpu"] for part in mapping)
    committing = sum(e["cpu_seconds"] for e in commits)
    tenths = [commits[i * len(commits) // 10 : (i + 1) * len(commits) // 10] for i in range(10)]
    store = MapStore(root / "map.icechunk")
    files = [p for p in (root / "map.icechunk").rglob("*") if p.is_file()]
    shards = after["end"]["shards"]
    return {
        "shards": shards,
        "pixels": shards * REAL.shard**2,
        "zones": len(store.zones()),
        "commits": len(commits),
        "seconds": round(seconds, 1),
        "shards_per_second": round(shards / seconds, 1),
        "receipt_bytes": before["first shard"]["bytes"],
        "commit_ms": [_ms(tenth) for tenth in tenths if tenth],
        "commit_share": round(sum(e["seconds"] for e in commits) / seconds, 3),
        "driver_cpu_ms_per_shard": round(1e3 * (cpu - committing) / shards, 2),
        "driver_mb": [tenth[-1]["rss_mb"] for tenth in tenths if tenth],
        "start_seconds": round(before["first shard"]["at"] - began, 1),
        "resume": {
            "at": after["started"]["done"],
            "seconds_to_plan_and_read_what_is_done": round(after["started"]["at"] - killed, 1),
            "seconds_to_first_shard": round(after["first shard"]["at"] - killed, 1),
        },
        "store": {
            "files": len(files),
            "manifests_mb": round(_size(files, "manifests") / 1e6, 1),
            "snapshots_mb": round(_size(files, "snapshots") / 1e6, 1),
            "chunks_mb": round(_size(files, "chunks") / 1e6, 1),
        },
    }


def _ms(commits: Sequence[dict[str, Any]]) -> dict[str, float]:
    took = sorted(1e3 * e["seconds"] for e in commits)
    cpu = statistics.median(1e3 * e["cpu_seconds"] for e in commits)
    return {"median": round(statistics.median(took), 1), "largest": round(took[-1], 1),
            "cpu": round(cpu, 1)}  # fmt: skip


def _size(files: Sequence[Path], folder: str) -> int:
    return sum(p.stat().st_size for p in files if p.parent.name == folder)


def extrapolated(found: Mapping[str, Any], gpus: Sequence[int]) -> list[dict[str, Any]]:
    """A real run by GPUs that do nothing but infer, and how busy its driver's commits would be.

    Assumes GPU_PIXELS a second for each, the windows that `terrafine map plan` counts, readers and
    writers that keep up, and commits that cost what they cost here.
    """
    total = json.loads(PLANNED.read_text())["plan"]["total"]
    pixels = found["shards"] / total["shards"] * total["window_pixels"]
    committing = found["commit_share"] * found["seconds"]
    rows = []
    for count in gpus:
        hours = pixels / (count * GPU_PIXELS) / 3600
        rows.append({"gpus": count, "hours": round(hours, 3),
                     "shards_per_second": round(found["shards"] / hours / 3600, 2),
                     "share_of_time_committing": round(committing / hours / 3600, 4)})  # fmt: skip
    return rows


def tables(found: Mapping[str, Any]) -> list[Table]:
    """For the terminal."""
    waves = Table("tenth of the run", "commit, ms", "largest", "CPU, ms", "driver, MB",
                  title="flat?")  # fmt: skip
    tenths = zip(found["commit_ms"], found["driver_mb"], strict=True)
    for number, (took, memory) in enumerate(tenths):
        waves.add_row(str(number + 1), f"{took['median']:.0f}", f"{took['largest']:.0f}",
                      f"{took['cpu']:.0f}", f"{memory:.0f}")  # fmt: skip
    real = Table("GPUs", "hours", "shards/s", "commits take", title="a real run, see the docstring")
    for row in found["real_run"]:
        real.add_row(str(row["gpus"]), f"{row['hours']:.2f}", f"{row['shards_per_second']:.1f}",
                     f"{100 * row['share_of_time_committing']:.1f} %")  # fmt: skip
    return [waves, real]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--area", type=float, default=AREA_KM2, help="km2")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--wave", type=int, default=REAL.wave, help="shards per commit")
    parser.add_argument("--folder", type=Path, help="for the store; default: a temporary one")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.drive:
        return drive(options.drive, workers=options.workers, wave=options.wave)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run(Path(folder), area_km2=options.area, workers=options.workers, wave=options.wave)
    machine = {"machine": platform.machine(), "processors": os.cpu_count(), "ray": ray.__version__}
    found = {"machine": machine, "workers": options.workers, "wave": options.wave, **found,
             "real_run": extrapolated(found, (1, 4, 8, 16, 64))}  # fmt: skip
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    for drawn in tables(found):
        Console().print(drawn)
    resume = found["resume"]
    print(
        f"{found['shards']:,} shards in {found['zones']} zones, {found['commits']:,} commits: "
        f"{found['shards_per_second']} shards/s; killed at {resume['at']:,}, the next shard "
        f"{resume['seconds_to_first_shard']} s later (aim: {RESUME_AIM:.0f})"
    )


if __name__ == "__main__":
    main()
