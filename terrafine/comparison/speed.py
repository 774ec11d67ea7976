"""How fast each variant's network is, as the map would be made."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from terrafine.accuracy import Front, Place
from terrafine.comparison.measure import Comparison, Row
from terrafine.comparison.plan import Plan
from terrafine.comparison.run import CellOutcome
from terrafine.export import export_onnx, load_bundle
from terrafine.mapping import (
    OnnxPredictor,
    OpenVinoPredictor,
    Predictor,
    open_torch,
    threads_of,
    windows_at_once,
)
from terrafine.progress import progress
from terrafine.spec import MapSpec

ROUNDS = 5


def measure_speed(outcomes: Sequence[CellOutcome]) -> dict[str, float]:
    """Variant -> seconds per megapixel of its network's input on this machine.

    Run by the engine and the threads that each spec's ``map`` names, with onnxruntime for a model
    server. The median over rounds in which every variant has its turn: on a busy machine all are
    slow together, and what they have to each other holds. Variants that came to nothing are left
    out. ModelError where the engine is not installed.
    """
    done = {o.cell.variant: o for o in reversed(outcomes) if o.error is None}
    seconds: dict[str, list[float]] = {variant: [] for variant in done}
    with tempfile.TemporaryDirectory() as scratch:
        opened = {variant: _open(o, Path(scratch)) for variant, o in done.items()}
        with progress("speed", total=(ROUNDS + 1) * len(opened), unit="turn") as task:
            for turn in range(ROUNDS + 1):
                for variant, predictor in opened.items():
                    took = _time(predictor, done[variant].cell.spec)
                    # the first one takes its memory
                    if turn:
                        seconds[variant].append(took)
                    task.advance()
    return {variant: statistics.median(times) for variant, times in seconds.items()}


def _open(outcome: CellOutcome, folder: Path) -> Predictor:
    """A cell's model, without the parity check: only its time is asked for."""
    spec, bundle = outcome.cell.spec, outcome.job.output(outcome.stages["prune"], "model")
    if spec.map.predictor == "torch":
        return open_torch(bundle, window=spec.map.window)
    model, info = load_bundle(bundle)
    path = folder / f"{info.digest}-{spec.map.window}-{spec.export.opset}.onnx"
    if not path.exists():
        export_onnx(model, path, window=spec.map.window, spec=spec.export, info=info)
    threads = threads_of(spec.map)
    if spec.map.predictor.startswith("openvino"):
        bfloat16 = spec.map.predictor == "openvino_bf16"
        return OpenVinoPredictor(path, threads=threads, bfloat16=bfloat16)
    return OnnxPredictor(path, threads=threads)


def _time(predictor: Predictor, spec: MapSpec) -> float:
    """Seconds per megapixel of as many windows as a worker asks about at once."""
    at_once = 1 if spec.map.predictor == "triton" else windows_at_once(spec.map)
    shape = (1, len(spec.imagery.bands), predictor.window, predictor.window)
    image = np.random.default_rng(0).integers(1, 3000, shape, dtype=np.uint16)
    with ThreadPoolExecutor(at_once) as pool:
        began = time.perf_counter()
        list(pool.map(predictor.predict, [image] * at_once))
        return (time.perf_counter() - began) / (at_once * predictor.window**2 / 1e6)


def with_speed(comparison: Comparison, seconds: Mapping[str, float]) -> Comparison:
    """The same comparison with the seconds per megapixel of its variants."""
    rows = tuple(
        row.model_copy(update={"seconds_per_megapixel": seconds.get(row.variant)})
        for row in comparison.rows
    )
    return comparison.model_copy(update={"rows": rows})


def front(comparison: Comparison, plan: Plan) -> Front | None:
    """The variants that were timed as places of accuracy and speed; None where none was."""
    specs = {cell.variant: cell.spec for cell in plan.cells}
    places = tuple(p for row in comparison.rows for p in _place(row, specs[row.variant]))
    found = next((row.report for row in comparison.rows if row.report is not None), None)
    if not places or found is None:
        return None
    return Front(
        name=comparison.name,
        first=comparison.rows[0].variant,
        statement=f"{found.statement} Reference: {found.reference_name}.",
        within=plan.within / 100,
        places=places,
    )


def _place(row: Row, spec: MapSpec) -> list[Place]:
    if row.report is None or row.seconds_per_megapixel is None:
        return []
    return [
        Place(
            network=row.variant,
            engine="onnx" if spec.map.predictor == "triton" else spec.map.predictor,
            threads=threads_of(spec.map),
            seconds_per_megapixel=row.seconds_per_megapixel,
            overall_accuracy=row.report.overall_accuracy,
            over_first=row.against_first and row.against_first.difference,
            parameters=row.network.parameters,
            macs_per_pixel=row.network.macs_per_pixel,
            models=tuple(row.models.values()),
        )
    ]
