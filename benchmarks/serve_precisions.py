"""fp32, fp16 and int8 of one network: how fast, and how far they say the same.

A section of benchmarks/serve.py.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from serve_subjects import BARE, Subject, Taken, served, take_turns

from serving.triton.client import TritonPredictor
from terrafine.export import Floors
from terrafine.export.parity import ParityReport, compare
from terrafine.legend import Legend
from terrafine.mapping import OnnxPredictor
from terrafine.spec import ExportSpec, ServeSpec

SERVED = "Triton"


@dataclass(frozen=True)
class PrecisionRow:
    """One graph run in one way, with batches of the first size asked for.

    ``times_as_long``: as fp32 in the same way, median of the ratios within a round;
    ``class_agreement`` and the errors of a probability: of its answers and those of fp32 without a
    server, on the windows that were timed; ``graph_bytes``: of the file; ``refused``: why export
    by its default floors would leave it out, by its parity with the network, "" where it would not.
    """

    network: str
    window: int
    variant: str
    batch: int
    way: str
    seconds_per_window: float
    times_as_long: float
    class_agreement: float
    mean_probability_error: float
    max_probability_error: float
    graph_bytes: int
    refused: str


def precisions(subject: Subject, options: argparse.Namespace, folder: Path) -> list[PrecisionRow]:
    """Every graph of a release without a server and in one server, in turns."""
    release, batch = subject.release, options.batches[0]
    graphs = release.info.graphs
    specs = [
        ServeSpec(
            name=variant,
            variant=variant,
            max_batch=batch,
            threads=options.threads,
            queue_delay_ms=0,
        )
        for variant in graphs
    ]
    ways = {}
    with served(release, specs, folder) as url, ExitStack() as clients:
        for variant in graphs:
            bare = OnnxPredictor(release.graph(variant), threads=options.threads)
            client = clients.enter_context(TritonPredictor(url, model=variant, deadline=600))
            ways |= {(variant, BARE): bare.predict, (variant, SERVED): client.predict}
        taken = take_turns(
            ways,
            subject.windows_NCHW,
            batch=batch,
            rounds=options.rounds,
            heading=f"{subject.name} precisions x{batch}",
        )
    rows = []
    for (variant, way), own in taken.items():
        parity = _parity(taken["fp32", BARE], own, release.info.legend)
        rows.append(
            PrecisionRow(
                network=subject.name,
                window=release.info.window,
                variant=variant,
                batch=batch,
                way=way,
                seconds_per_window=min(own.seconds) / len(subject.windows_NCHW),
                times_as_long=own.times(taken["fp32", way]),
                class_agreement=parity.class_agreement,
                mean_probability_error=parity.mean_probability_error,
                max_probability_error=parity.max_probability_error,
                graph_bytes=graphs[variant].bytes,
                refused=Floors.of(ExportSpec(), variant).refusal(graphs[variant].parity),
            )
        )
    return rows


def _parity(exact: Taken, other: Taken, legend: Legend) -> ParityReport:
    one, two = (
        [(said.enhanced_NHW, said.other_class_NHW, said.other_NHW) for said in taken.said]
        for taken in (exact, other)
    )
    return compare(zip(one, two, strict=True), legend)


def precision_table(rows: list[PrecisionRow]) -> Table:
    """For the terminal."""
    drawn = Table(
        "network", "graph", "batch", "way", "s/window", "times fp32", "classes", "mean error",
        "largest", "MB", "export", title="precisions",
    )  # fmt: skip
    for row in rows:
        drawn.add_row(
            f"{row.network} {row.window}²",
            row.variant,
            str(row.batch),
            row.way,
            f"{row.seconds_per_window:.3f}",
            f"{row.times_as_long:.2f}",
            f"{100 * row.class_agreement:.3f} %",
            f"{row.mean_probability_error:.5f}",
            f"{row.max_probability_error:.3f}",
            f"{row.graph_bytes / 1e6:.1f}",
            "refused" if row.refused else "kept",
        )
    return drawn
