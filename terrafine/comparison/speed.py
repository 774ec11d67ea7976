"""How fast each variant's network is, as it would be served, and which of them are worth having."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from terrafine.comparison.measure import Comparison, Row
from terrafine.comparison.run import CellOutcome
from terrafine.export import INPUT, OUTPUTS, export_onnx, load_bundle, open_graph
from terrafine.progress import progress

ROUNDS = 5


def measure_speed(outcomes: Sequence[CellOutcome], *, threads: int = 0) -> dict[str, float]:
    """Variant -> seconds per megapixel of its exported graph under onnxruntime on this machine.

    The median over rounds in which every variant has its turn, on one window of the spec's size:
    on a busy machine all are slow together, and what they have to each other holds. Variants
    that came to nothing are left out. ``threads``: 0 for every core.
    """
    done = {o.cell.variant: o for o in reversed(outcomes) if o.error is None}
    seconds: dict[str, list[float]] = {variant: [] for variant in done}
    with tempfile.TemporaryDirectory() as scratch:
        graphs = {variant: _exported(o, Path(scratch)) for variant, o in done.items()}
        sessions = {v: open_graph(path, threads=threads) for v, path in graphs.items()}
        with progress("speed", total=(ROUNDS + 1) * len(sessions), unit="window") as task:
            for turn in range(ROUNDS + 1):
                for variant, (session, info) in sessions.items():
                    shape = (1, info.bands, info.window, info.window)
                    image = np.random.default_rng(0).integers(1, 3000, shape, dtype=np.uint16)
                    began = time.perf_counter()
                    session.run(list(OUTPUTS), {INPUT: image})
                    # the first one takes its memory
                    if turn:
                        took = time.perf_counter() - began
                        seconds[variant].append(took / (info.window**2 / 1e6))
                    task.advance()
    return {variant: statistics.median(times) for variant, times in seconds.items()}


def _exported(outcome: CellOutcome, folder: Path) -> Path:
    """The graph of a cell's model, without the parity check: only its time is asked for."""
    model, info = load_bundle(outcome.job.output(outcome.stages["prune"], "model"))
    path = folder / f"{info.digest}.onnx"
    if not path.exists():
        spec = outcome.cell.spec
        export_onnx(model, path, window=spec.map.window, spec=spec.export, info=info)
    return path


def with_speed(comparison: Comparison, seconds: Mapping[str, float]) -> Comparison:
    """The same comparison with the seconds per megapixel of its variants."""
    rows = tuple(
        row.model_copy(update={"seconds_per_megapixel": seconds.get(row.variant)})
        for row in comparison.rows
    )
    return comparison.model_copy(update={"rows": rows})


def front(rows: Sequence[Row]) -> list[Row]:
    """The variants that no other beats in both speed and overall accuracy, fastest first."""
    measured = [(row, speed, value) for row in rows for speed, value in _place(row)]
    return [
        row
        for row, speed, value in sorted(measured, key=lambda m: (m[1], -m[2]))
        if not any(s <= speed and v >= value and (s, v) != (speed, value) for _, s, v in measured)
    ]


def _place(row: Row) -> list[tuple[float, float]]:
    value = None if row.report is None else row.report.overall_accuracy.value
    speed = row.seconds_per_megapixel
    return [] if value is None or speed is None else [(speed, value)]
