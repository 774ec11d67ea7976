"""What a model server costs beyond the model, what precisions are worth, what many clients get.

    python benchmarks/serve.py                                   # hrnet_w24, windows of 1024
    python benchmarks/serve.py --sections overhead --arch unet_w16 --window 256 --batches 1 4
    python benchmarks/serve.py --release runs/a/export/latest/release runs/b/export/latest/release
    python benchmarks/serve.py --sections precisions --spec runs/a.yaml --data data \\
        --bundle runs/a/train/latest/model runs/a/prune/latest/model  # a trained model, its imagery

overhead: the same windows go through onnxruntime in this process and through a real Triton on this
machine, by gRPC over the loopback and by shared memory. precisions: fp32, fp16 and int8 without and
with that server, and how far they say the same. clients: several at once of one server, held
against the right answers. All in turns, so that ratios hold on a busy machine.

Without --release or --bundle the networks are drawn at random, unpruned and pruned: no figure but
the agreement of precisions depends on what they have learnt; for that take --bundle. A release is
asked about the two windows in it, of which the first may have calibrated its int8. Sections that
are not run keep their figures in the JSON. (A script called serving.py would hide the package it
measures.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console
from rich.table import Table
from serve_clients import ClientsRow, clients, clients_table
from serve_precisions import precision_table, precisions
from serve_subjects import BARE, Subject, served, subjects, take_turns

from serving.triton.client import TritonPredictor
from terrafine.mapping import OnnxPredictor
from terrafine.spec import ServeSpec
from terrafine.telemetry import RequestRecord

RESULT = Path(__file__).parent / "results" / "serving.json"
VARIANTS = ("fp32", "fp16", "int8")
# of wall time beyond the bare run; bytes per pixel on the wire
AIMS = {"shared memory": 0.10, "gRPC": 0.20, "sent": 8.0, "received": 3.0}


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
    window: int
    variant: str
    batch: int
    way: str
    seconds_per_window: float
    overhead: float
    sent_per_pixel: float
    received_per_pixel: float
    queue: float
    compute: float


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Export, serve, measure; print the tables and write the JSON."""
    options = _options(arguments)
    measured = {"overhead": overhead, "precisions": precisions, "clients": clients}
    drawn = {"overhead": overhead_table, "precisions": precision_table, "clients": clients_table}
    rows: dict[str, list[Any]] = {section: [] for section in options.sections}
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        for subject in subjects(options, Path(folder)):
            for section in options.sections:
                rows[section] += measured[section](subject, options, Path(folder))
    _write(rows, options)
    for section, found in rows.items():
        Console(width=140).print(drawn[section](found))
    _require_right(rows.get("clients", []))
    return rows


def overhead(subject: Subject, options: argparse.Namespace, folder: Path) -> list[Row]:
    """All batch sizes and ways of the chosen graphs, over one server each."""
    return [
        row
        for variant in options.variants
        if variant in subject.release.info.graphs
        for row in _overhead(subject, variant, options, folder)
    ]


def _overhead(
    subject: Subject, variant: Any, options: argparse.Namespace, folder: Path
) -> list[Row]:
    release, windows_NCHW = subject.release, subject.windows_NCHW
    spec = ServeSpec(
        variant=variant, max_batch=max(options.batches), threads=options.threads, queue_delay_ms=0
    )
    bare = OnnxPredictor(release.graph(variant), threads=options.threads)
    rows = []
    with served(release, [spec], folder) as url, ExitStack() as stack:
        for batch in options.batches:
            counted = {"gRPC": Counted(), "shared memory": Counted()}
            triton = {
                way: stack.enter_context(
                    TritonPredictor(
                        url, shared_memory=way == "shared memory", max_batch=batch, observer=count
                    )
                )
                for way, count in counted.items()
            }
            taken = take_turns(
                {BARE: bare.predict, **{way: client.predict for way, client in triton.items()}},
                windows_NCHW,
                batch=batch,
                rounds=options.rounds,
                heading=f"{subject.name} {variant} x{batch}",
                counted=lambda client=triton["gRPC"]: _counted(client),
            )
            rows += [
                Row(
                    network=subject.name,
                    window=release.info.window,
                    variant=variant,
                    batch=batch,
                    way=way,
                    seconds_per_window=min(own.seconds) / len(windows_NCHW),
                    overhead=own.times(taken[BARE]) - 1,
                    sent_per_pixel=_ratio(counted.get(way), "sent"),
                    received_per_pixel=_ratio(counted.get(way), "received"),
                    queue=own.queue,
                    compute=own.compute,
                )
                for way, own in taken.items()
            ]
    return rows


def _counted(client: TritonPredictor) -> tuple[float, float]:
    (found,) = client.statistics()
    return found.queue_seconds, found.compute_seconds


def _ratio(counted: Counted | None, what: str) -> float:
    return getattr(counted, what) / counted.pixels if counted else 0.0


def overhead_table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    drawn = Table(
        "network", "graph", "batch", "way", "s/window", "overhead", "B/px out", "back", "queue, ms",
        "compute, ms", title="overhead",
    )  # fmt: skip
    for row in rows:
        asked = row.way != BARE
        drawn.add_row(
            f"{row.network} {row.window}²",
            row.variant,
            str(row.batch),
            row.way,
            f"{row.seconds_per_window:.3f}",
            f"{100 * row.overhead:+.1f} %" if asked else "",
            f"{row.sent_per_pixel:.2f}" if asked else "",
            f"{row.received_per_pixel:.2f}" if asked else "",
            f"{1000 * row.queue:.1f}" if asked else "",
            f"{1000 * row.compute:.0f}" if asked else "",
        )
    return drawn


def _write(rows: dict[str, list[Any]], options: argparse.Namespace) -> None:
    """The sections that were run, with what they were run on; the others stay."""
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    for section, own in rows.items():
        found[section] = {**_circumstances(options), "rows": [asdict(row) for row in own]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**found, "aims": AIMS}, indent=1) + "\n")


def _require_right(rows: Sequence[ClientsRow]) -> None:
    wrong, failed = (sum(getattr(row, name) for row in rows) for name in ("wrong", "failed"))
    if wrong or failed:
        raise SystemExit(f"{wrong} answers were wrong and {failed} requests failed; none may be")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = ("overhead", "precisions", "clients")
    parser.add_argument("--sections", nargs="+", default=names, choices=names)
    parser.add_argument("--arch", default="hrnet_w24")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument(
        "--windows", type=int, default=4, help="in a turn; a multiple of each batch"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 4], help="precisions take the first"
    )
    parser.add_argument(
        "--variants", nargs="+", default=["fp32"], choices=VARIANTS, help="of overhead and clients"
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.4], help="pruned")
    parser.add_argument("--release", type=Path, nargs="+", help="folders, instead of --arch")
    parser.add_argument("--bundle", type=Path, nargs="+", help="models of the run of --spec")
    parser.add_argument("--spec", type=Path, help="whose imagery a --bundle is asked about")
    parser.add_argument("--data", type=Path, help="where its paths start; default: its folder")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once")
    parser.add_argument("--requests", type=int, default=48, help="of all clients in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    if any(options.windows % batch for batch in options.batches):
        parser.error(f"--windows {options.windows} is no multiple of every batch")
    if options.requests < max(options.clients):
        parser.error(f"--requests {options.requests} are fewer than --clients")
    if bool(options.bundle) != bool(options.spec):
        parser.error("--bundle and --spec need each other")
    options.exported = VARIANTS if "precisions" in options.sections else tuple(options.variants)
    return options


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    kept = ("windows", "rounds", "threads")
    return {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
        **{k: getattr(options, k) for k in kept},
    }


if __name__ == "__main__":
    main()
