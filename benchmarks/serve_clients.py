"""Many clients of one model server at once: throughput, latency, batches, and right answers.

A section of benchmarks/serve.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from rich.table import Table
from serve_subjects import Subject, served

from serving.triton.client import TritonPredictor
from terrafine.errors import ServingError
from terrafine.export import Prediction
from terrafine.mapping import OnnxPredictor
from terrafine.progress import progress
from terrafine.spec import ServeSpec
from terrafine.telemetry import RequestRecord, VersionStatistics

# seconds for which a request may wait behind those of all the others
_PATIENCE = 600.0


@dataclass(frozen=True)
class ClientsRow:
    """So many clients at once, each a thread with a connection of its own and one window at a time.

    ``mpixel_per_second``: median over the rounds; ``times_as_fast``: as the first number of clients
    in the same round; ``p50``, ``p99``: seconds from asking to the answer, of all rounds;
    ``windows_per_batch``, ``queue``: means that Triton counted, the latter in seconds of a request;
    ``wrong``: answers of which a byte differs from onnxruntime's without a server; ``failed``:
    requests without an answer; ``retried``: tries that failed and were repeated.
    """

    network: str
    window: int
    variant: str
    clients: int
    requests: int
    mpixel_per_second: float
    times_as_fast: float
    p50: float
    p99: float
    windows_per_batch: float
    queue: float
    wrong: int
    failed: int
    retried: int


@dataclass(frozen=True)
class _Turn:
    """All requests once, and what Triton had counted before and after."""

    took: float
    seconds: list[float]
    wrong: int
    failed: int
    retried: int
    before: VersionStatistics
    after: VersionStatistics


class _Retries:
    """Counts tries of a client that failed."""

    def __init__(self) -> None:
        self.count = 0

    def request(self, record: RequestRecord) -> None:
        """An answer is counted where it is held against the right one."""

    def failure(self, model: str, cause: str) -> None:
        self.count += 1


def clients(subject: Subject, options: argparse.Namespace, folder: Path) -> list[ClientsRow]:
    """Each number of clients, in turns, over one server as production configures it."""
    rows = []
    for variant in options.variants:
        if variant not in subject.release.info.graphs:
            continue
        bare = OnnxPredictor(subject.release.graph(variant), threads=options.threads)
        right = [bare.predict(window_CHW[None]) for window_CHW in subject.windows_NCHW]
        spec = ServeSpec(variant=variant, threads=options.threads, queue_timeout_s=_PATIENCE)
        turns: dict[int, list[_Turn]] = {count: [] for count in options.clients}
        total = (options.rounds + 1) * len(turns)
        heading = f"{subject.name} {variant} clients"
        with (
            served(subject.release, [spec], folder) as url,
            progress(heading, total=total, unit="turn") as task,
        ):
            for _ in range(options.rounds + 1):
                for count in turns:
                    windows_NCHW = subject.windows_NCHW
                    turns[count].append(_turn(url, count, windows_NCHW, right, options.requests))
                    task.advance()
        rows += [_row(subject, variant, count, turns, options) for count in turns]
    return rows


def _turn(
    url: str, count: int, windows_NCHW: Any, right: Sequence[Prediction], requests: int
) -> _Turn:
    retries = _Retries()
    left: SimpleQueue[int] = SimpleQueue()
    for number in range(requests):
        left.put(number % len(windows_NCHW))
    with ExitStack() as stack:
        several = [
            stack.enter_context(
                TritonPredictor(
                    url,
                    shared_memory=False,
                    deadline=_PATIENCE,
                    patience=_PATIENCE,
                    observer=retries,
                )
            )
            for _ in range(count)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(count))
        (before,) = several[0].statistics()
        began = time.perf_counter()
        asking = [pool.submit(_ask, client, left, windows_NCHW, right) for client in several]
        found = [future.result() for future in asking]
        took = time.perf_counter() - began
        (after,) = several[0].statistics()
    return _Turn(
        took,
        seconds=[second for seconds, _, _ in found for second in seconds],
        wrong=sum(wrong for _, wrong, _ in found),
        failed=sum(failed for _, _, failed in found),
        retried=retries.count,
        before=before,
        after=after,
    )


def _ask(
    client: TritonPredictor,
    left: SimpleQueue[int],
    windows_NCHW: Any,
    right: Sequence[Prediction],
) -> tuple[list[float], int, int]:
    """Ask until nothing is left: seconds of each answer, how many were wrong, how many failed."""
    seconds: list[float] = []
    wrong = failed = 0
    while True:
        try:
            index = left.get_nowait()
        except Empty:
            return seconds, wrong, failed
        began = time.perf_counter()
        try:
            said = client.predict(windows_NCHW[index : index + 1])
        except ServingError:
            failed += 1
            continue
        seconds.append(time.perf_counter() - began)
        wrong += not all(
            np.array_equal(getattr(said, name), getattr(right[index], name))
            for name in ("enhanced_NHW", "other_class_NHW", "other_NHW")
        )


def _row(
    subject: Subject,
    variant: str,
    count: int,
    turns: dict[int, list[_Turn]],
    options: argparse.Namespace,
) -> ClientsRow:
    # what the first turn takes is not counted: it makes plans and takes memory
    own, first = turns[count][1:], turns[options.clients[0]][1:]
    pixels = options.requests * subject.windows_NCHW[0, 0].size
    seconds = [second for turn in own for second in turn.seconds]
    windows, executions, queued, requests = (
        sum(getattr(turn.after, name) - getattr(turn.before, name) for turn in own)
        for name in ("windows", "executions", "queue_seconds", "requests")
    )
    p50, p99 = np.percentile(seconds, (50, 99)) if seconds else (0.0, 0.0)
    return ClientsRow(
        network=subject.name,
        window=subject.release.info.window,
        variant=variant,
        clients=count,
        requests=options.requests,
        mpixel_per_second=statistics.median(pixels / 1e6 / turn.took for turn in own),
        times_as_fast=statistics.median(
            other.took / turn.took for turn, other in zip(own, first, strict=True)
        ),
        p50=float(p50),
        p99=float(p99),
        windows_per_batch=windows / max(1, executions),
        queue=queued / max(1, requests),
        wrong=sum(turn.wrong for turn in turns[count]),
        failed=sum(turn.failed for turn in turns[count]),
        retried=sum(turn.retried for turn in turns[count]),
    )


def clients_table(rows: Sequence[ClientsRow]) -> Table:
    """For the terminal."""
    drawn = Table(
        "network", "graph", "clients", "Mpx/s", "times", "p50, s", "p99, s", "batch",
        "queue, s", "wrong", "failed", "again", title="clients at once, gRPC",
    )  # fmt: skip
    for row in rows:
        drawn.add_row(
            f"{row.network} {row.window}²",
            row.variant,
            str(row.clients),
            f"{row.mpixel_per_second:.3f}",
            f"{row.times_as_fast:.2f}",
            f"{row.p50:.2f}",
            f"{row.p99:.2f}",
            f"{row.windows_per_batch:.2f}",
            f"{row.queue:.3f}",
            str(row.wrong),
            str(row.failed),
            str(row.retried),
        )
    return drawn
