"""What a model server costs beyond the model: time and bytes, as they are measured.

    python benchmarks/serve.py                                   # hrnet_w24, windows of 1024
    python benchmarks/serve.py --arch unet_w16 --window 256 --batches 1 4 --json /tmp/unet.json
    python benchmarks/serve.py --release runs/a/export/latest/release runs/b/export/latest/release

The same windows go through onnxruntime in this process and through a real Triton on this machine,
by gRPC over the loopback and by shared memory, in turns, so that ratios hold on a busy machine.
Without --release the networks are drawn at random, unpruned and pruned: no figure depends on what
they have learnt. (A script called serving.py would hide the package it measures.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from serving.triton.client import TritonPredictor
from serving.triton.endpoint import Endpoint
from serving.triton.lifecycle import Lifecycle
from serving.triton.repository import ModelRepository
from serving.triton.server import TritonServer
from terrafine.accuracy import GateDecision, RuleResult
from terrafine.export import BundleInfo, Release, read_release, write_release
from terrafine.legend import SEVEN
from terrafine.mapping import OnnxPredictor
from terrafine.models import RawInput, RawModel, build_network, changed_channels
from terrafine.models.layers import BatchNorm
from terrafine.progress import progress
from terrafine.pruning import plan_pruning, without_zeroed, zero_filters
from terrafine.spec import ExportSpec, ModelSpec, PruneSpec, ServeSpec
from terrafine.telemetry import RequestRecord

RESULT = Path(__file__).parent / "results" / "serving.json"
BANDS = ("red", "green", "blue", "nir")
# of wall time beyond the bare run; bytes per pixel on the wire
AIMS = {"shared memory": 0.10, "gRPC": 0.20, "sent": 8.0, "received": 3.0}
BARE = "onnxruntime"


class Counted:
    """Bytes and pixels of the requests of one client."""

    def __init__(self) -> None:
        self.sent = self.received = self.pixels = 0

    def request(self, record: RequestRecord) -> None:
        self.sent += record.sent
        self.received += record.received
        self.pixels += record.pixels

    def failure(self, model: str, cause: str) -> None:
        raise RuntimeError(f"a try failed while time was taken: {cause}")


@dataclass(frozen=True)
class Row:
    """One way of running one graph with one batch size.

    ``overhead``: median over the rounds of its time relative to the bare run's in the same round,
    less one; ``queue``, ``compute``: seconds per window that Triton counted.
    """

    network: str
    variant: str
    batch: int
    way: str
    seconds_per_window: float
    overhead: float
    sent_per_pixel: float
    received_per_pixel: float
    queue: float
    compute: float


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Export, serve, measure; print the table and write the JSON."""
    options = _options(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        for name, release in _releases(options, Path(folder)):
            for variant in options.variants:
                if variant in release.info.graphs:
                    rows += measure(name, release, variant, options, Path(folder))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {**_circumstances(options), "aims": AIMS, "rows": [asdict(row) for row in rows]}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    Console(width=120).print(table(rows, f"windows of {options.window}, {options.threads} threads"))
    return rows


def measure(
    network: str, release: Release, variant: Any, options: argparse.Namespace, folder: Path
) -> list[Row]:
    """All batch sizes and ways of one graph, over one server."""
    size = release.info.window
    shape = (options.windows, len(release.info.bands), size, size)
    windows = np.random.default_rng(0).integers(1, 300, shape, dtype=np.uint16)
    spec = ServeSpec(
        variant=variant, max_batch=max(options.batches), threads=options.threads, queue_delay_ms=0
    )
    bare = OnnxPredictor(release.graph(variant), threads=options.threads)
    rows = []
    with _served(release, spec, folder) as url, ExitStack() as clients:
        for batch in options.batches:
            counted = {"gRPC": Counted(), "shared memory": Counted()}
            triton = {
                way: clients.enter_context(
                    TritonPredictor(
                        url, shared_memory=way == "shared memory", max_batch=batch, observer=count
                    )
                )
                for way, count in counted.items()
            }
            ways = {BARE: bare.predict, **{way: client.predict for way, client in triton.items()}}
            heading = f"{network} {variant} x{batch}"
            seconds, server = _rounds(ways, windows, batch, options.rounds, triton["gRPC"], heading)
            rows += [
                Row(
                    network=network,
                    variant=variant,
                    batch=batch,
                    way=way,
                    seconds_per_window=min(seconds[way]) / len(windows),
                    overhead=_overhead(seconds[way], seconds[BARE]),
                    sent_per_pixel=_ratio(counted.get(way), "sent"),
                    received_per_pixel=_ratio(counted.get(way), "received"),
                    queue=server[way][0],
                    compute=server[way][1],
                )
                for way in ways
            ]
    return rows


def _rounds(
    ways: Mapping[str, Callable[[Any], Any]],
    windows: Any,
    batch: int,
    rounds: int,
    counter: TritonPredictor,
    heading: str,
) -> tuple[dict[str, list[float]], dict[str, tuple[float, float]]]:
    """Seconds for all windows, round by round, and Triton's own per window."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    server: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with progress(heading, total=(rounds + 1) * len(ways), unit="turn") as task:
        for turn in range(rounds + 1):
            for way, predict in ways.items():
                before = _counted(counter)
                began = time.perf_counter()
                for start in range(0, len(windows), batch):
                    predict(windows[start : start + batch])
                took = time.perf_counter() - began
                # the first turn makes plans, takes memory and registers regions
                if turn:
                    seconds[way].append(took)
                    waited = zip(_counted(counter), before, strict=True)
                    queue, compute = ((now - then) / len(windows) for now, then in waited)
                    server[way].append((queue, compute))
                task.advance()
    medians = {
        way: (statistics.median(q for q, _ in found), statistics.median(c for _, c in found))
        for way, found in server.items()
    }
    return seconds, medians


def _counted(client: TritonPredictor) -> tuple[float, float]:
    (found,) = client.statistics()
    return found.queue_seconds, found.compute_seconds


def _overhead(seconds: list[float], bare: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, bare, strict=True)) - 1


def _ratio(counted: Counted | None, what: str) -> float:
    return getattr(counted, what) / counted.pixels if counted else 0.0


@contextmanager
def _served(release: Release, spec: ServeSpec, folder: Path) -> Iterator[str]:
    """The address of a Triton that serves one graph."""
    place = Path(tempfile.mkdtemp(dir=folder))
    with TritonServer(place / "repository", folder=place / "server") as server:
        with Endpoint(server.grpc_url.removeprefix("grpc://")) as endpoint:
            lifecycle = Lifecycle(ModelRepository(server.repository, spec.name), [endpoint])
            lifecycle.deploy(release, spec)
            lifecycle.promote()
        yield server.grpc_url


def _releases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Release]]:
    if options.release:
        for place in options.release:
            yield str(place), read_release(place)
        return
    for ratio in options.ratios:
        name = f"{options.arch} pruned by {ratio:g}" if ratio else options.arch
        yield name, _made(folder / f"release-{ratio:g}", ratio, options)


def _made(folder: Path, ratio: float, options: argparse.Namespace) -> Release:
    """A release of a network that nobody trained."""
    model = ModelSpec(arch=options.arch)
    network = build_network(model, bands=len(BANDS), classes=len(SEVEN.classes)).eval()
    for norm in (m for m in network.modules() if isinstance(m, BatchNorm)):
        # residual blocks start as the identity; a trained one computes something
        torch.nn.init.constant_(norm.weight, 0.5)
    if ratio:
        spec = PruneSpec(ratio=ratio, coupled=True, round_to=8)
        plan = plan_pruning(network, spec, bands=len(BANDS))
        zero_filters(network, plan)
        network = without_zeroed(network, plan)
    mean, std = (150.0,) * len(BANDS), (80.0,) * len(BANDS)
    info = BundleInfo(
        model=model,
        bands=BANDS,
        fill=0,
        mean=mean,
        std=std,
        legend=SEVEN,
        channels=changed_channels(network, model),
    )
    shape = (1, len(BANDS), options.window, options.window)
    windows = np.random.default_rng(1).integers(1, 300, shape, dtype=np.uint16)
    rule = RuleResult(name="none", passed=True, required="-", found="-", reason="")
    return write_release(
        folder,
        RawModel(RawInput(mean, std, 0), network).eval(),
        info,
        windows,
        name=folder.name,
        gate=GateDecision(passed=True, subject="benchmark", evidence="none", rules=(rule,)),
        window=options.window,
        # how well graphs agree is not measured here, and a random network's hardly do
        spec=ExportSpec(
            variants=options.variants,
            min_class_agreement=0,
            max_probability_error=1,
            reduced_class_agreement={"fp16": 0, "int8": 0},
        ),
    )


def table(rows: Sequence[Row], title: str) -> Table:
    """For the terminal."""
    drawn = Table(
        "network", "graph", "batch", "way", "s/window", "overhead", "B/px out", "back", "queue, ms",
        "compute, ms", title=title,
    )  # fmt: skip
    for row in rows:
        served = row.way != BARE
        drawn.add_row(
            row.network,
            row.variant,
            str(row.batch),
            row.way,
            f"{row.seconds_per_window:.3f}",
            f"{100 * row.overhead:+.1f} %" if served else "",
            f"{row.sent_per_pixel:.2f}" if served else "",
            f"{row.received_per_pixel:.2f}" if served else "",
            f"{1000 * row.queue:.1f}" if served else "",
            f"{1000 * row.compute:.0f}" if served else "",
        )
    return drawn


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="hrnet_w24")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument(
        "--windows", type=int, default=4, help="in a turn; a multiple of each batch"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--variants", nargs="+", default=["fp32"], choices=("fp32", "fp16", "int8"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.4], help="pruned")
    parser.add_argument("--release", type=Path, nargs="+", help="folders, instead of --arch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    if any(options.windows % batch for batch in options.batches):
        parser.error(f"--windows {options.windows} is no multiple of every batch")
    return options


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
        **{k: getattr(options, k) for k in ("window", "windows", "rounds", "threads")},
    }


if __name__ == "__main__":
    main()
