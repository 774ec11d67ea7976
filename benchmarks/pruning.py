"""What pruning saves: parameters, multiply-accumulates, and time as it is measured.

    python benchmarks/pruning.py                                   # hrnet_w24, the paper's stem
    python benchmarks/pruning.py --arch unet_w16 --window 256 --rounds 3 --json /tmp/unet.json
    python benchmarks/pruning.py --stem-strides 2 2 --window 1024 --engine openvino_bf16

Each variant is pruned (the weights are drawn at random, which no figure here depends on), exported
as it would be served and run by an engine of the mapper, all in turns, so that ratios hold on a
busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from terrafine.export import BundleInfo, export_onnx
from terrafine.legend import SEVEN
from terrafine.mapping import OnnxPredictor, OpenVinoPredictor, Predictor
from terrafine.models import RawInput, RawModel, build_network, changed_channels, describe_spec
from terrafine.models.layers import BatchNorm
from terrafine.progress import progress
from terrafine.pruning import plan_pruning, without_zeroed, zero_filters
from terrafine.spec import ExportSpec, ModelSpec, PruneSpec

RESULTS = Path(__file__).parent / "results"
BANDS = ("red", "green", "blue", "nir")
# Dong et al. 2020, Table 5, and the speed that is to come of it
AIMS = {"fewer_macs": 0.526, "fewer_parameters": 0.42, "speed_up": 1.8}
UNPRUNED = "unpruned"
VARIANTS: Mapping[str, PruneSpec] = {
    UNPRUNED: PruneSpec(),
    "0.4, as the paper": PruneSpec(ratio=0.4),
    "0.4, as the paper, by 8": PruneSpec(ratio=0.4, round_to=8),
    "0.4, coupled": PruneSpec(ratio=0.4, coupled=True),
    "0.4, coupled, by 8": PruneSpec(ratio=0.4, coupled=True, round_to=8),
    "0.4, coupled, by 16": PruneSpec(ratio=0.4, coupled=True, round_to=16),
    "0.5, coupled, by 8": PruneSpec(ratio=0.5, coupled=True, round_to=8),
    "late stages, by 8": PruneSpec(
        stage_ratios={"stage3": 0.6, "stage4": 0.75}, coupled=True, round_to=8
    ),
}
ENGINES: Mapping[str, Callable[..., Predictor]] = {
    "onnx": OnnxPredictor,
    "openvino": OpenVinoPredictor,
    # a window of its own for each thread, as the mapper asks it
    "openvino_bf16": partial(OpenVinoPredictor, bfloat16=True),
}


@dataclass(frozen=True)
class Pruned:
    """A variant's graph and what it costs on paper."""

    name: str
    graph: Path
    cost: Mapping[str, Any]
    export_seconds: float


def prune_and_export(
    name: str, spec: PruneSpec, model: ModelSpec, *, window: int, folder: Path
) -> Pruned:
    """The variant's graph in ``folder``."""
    network = build_network(model, bands=len(BANDS), classes=len(SEVEN.classes)).eval()
    for norm in (m for m in network.modules() if isinstance(m, BatchNorm)):
        # residual blocks start as the identity; a trained one computes something
        torch.nn.init.constant_(norm.weight, 0.5)
    if spec.active:
        plan = plan_pruning(network, spec, bands=len(BANDS))
        zero_filters(network, plan)
        network = without_zeroed(network, plan)
    channels = changed_channels(network, model)
    mean, std = (120.0,) * len(BANDS), (40.0,) * len(BANDS)
    info = BundleInfo(
        model=model, bands=BANDS, fill=0, mean=mean, std=std, legend=SEVEN, channels=channels
    )
    graph = folder / f"{len(list(folder.iterdir()))}.onnx"
    began = time.perf_counter()
    served = RawModel(RawInput(mean, std, 0), network)
    export_onnx(served, graph, window=window, spec=ExportSpec(), info=info)
    cost = describe_spec(model, bands=len(BANDS), classes=len(SEVEN.classes), channels=channels)
    return Pruned(name, graph, cost, round(time.perf_counter() - began, 1))


def measure(
    variants: Sequence[Pruned], *, window: int, rounds: int, threads: int, engine: str
) -> dict[str, list[float]]:
    """Seconds per window, for each variant, round by round."""
    models = {v.name: ENGINES[engine](v.graph, threads=threads) for v in variants}
    shape = (1, len(BANDS), window, window)
    image = np.random.default_rng(0).integers(1, 300, shape, dtype=np.uint16)
    at_once = threads if engine == "openvino_bf16" else 1
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with (
        progress("measure", total=(rounds + 1) * len(models), unit="turn") as task,
        ThreadPoolExecutor(at_once) as pool,
    ):
        for turn in range(rounds + 1):
            for name, model in models.items():
                began = time.perf_counter()
                list(pool.map(model.predict, [image] * at_once))
                # the first one makes its plans and takes its memory
                if turn:
                    seconds[name].append((time.perf_counter() - began) / at_once)
                task.advance()
    return seconds


def rows(variants: Sequence[Pruned], seconds: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Figures of each variant, against those of the unpruned one in the same round."""
    whole = next(v for v in variants if v.name == UNPRUNED)
    found = []
    for variant in variants:
        ratios = [a / b for a, b in zip(seconds[whole.name], seconds[variant.name], strict=True)]
        row = {
            "variant": variant.name,
            "prune": VARIANTS[variant.name].model_dump(mode="json"),
            **{
                key: variant.cost[key]
                for key in ("parameters", "macs_per_pixel", "activations_per_pixel")
            },
            "fewer_parameters": 1 - variant.cost["parameters"] / whole.cost["parameters"],
            "fewer_macs": 1 - variant.cost["macs_per_pixel"] / whole.cost["macs_per_pixel"],
            "seconds_per_window": min(seconds[variant.name]),
            "speed_up": statistics.median(ratios),
            "speed_up_by_round": ratios,
            "export_seconds": variant.export_seconds,
        }
        row["reaches_aims"] = all(row[key] >= aim for key, aim in AIMS.items())
        found.append(row)
    return found


def table(found: Sequence[Mapping[str, Any]], title: str) -> Table:
    """For the terminal."""
    drawn = Table(
        "variant", "params, M", "fewer", "kMAC/px", "fewer", "acts/px", "s/window", "speed-up",
        "aims", title=title,
    )  # fmt: skip
    for row in found:
        drawn.add_row(
            row["variant"],
            f"{row['parameters'] / 1e6:.2f}",
            f"{100 * row['fewer_parameters']:.1f} %",
            f"{row['macs_per_pixel'] / 1e3:.1f}",
            f"{100 * row['fewer_macs']:.1f} %",
            f"{row['activations_per_pixel']:,}",
            f"{row['seconds_per_window']:.3f}",
            f"{row['speed_up']:.2f}x",
            "yes" if row["reaches_aims"] else "no",
        )
    return drawn


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prune, export, measure; print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="hrnet_w24")
    parser.add_argument("--stem-strides", type=int, nargs=2, default=(2, 1))
    parser.add_argument("--stem-channels", type=int, default=64)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", default="onnx", choices=list(ENGINES))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--json", type=Path, default=RESULTS / "pruning.json")
    options = parser.parse_args(arguments)
    model = ModelSpec(
        arch=options.arch,
        stem_strides=tuple(options.stem_strides),
        stem_channels=options.stem_channels,
    )
    names = list(dict.fromkeys([UNPRUNED, *options.variants]))
    with tempfile.TemporaryDirectory() as folder:
        made = []
        with progress("prune and export", total=len(names), unit="variant") as task:
            for name in names:
                made.append(
                    prune_and_export(
                        name, VARIANTS[name], model, window=options.window, folder=Path(folder)
                    )
                )
                task.advance()
        seconds = measure(
            made,
            window=options.window,
            rounds=options.rounds,
            threads=options.threads,
            engine=options.engine,
        )
    found = rows(made, seconds)
    machine = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
    }
    settings = {key: getattr(options, key) for key in ("window", "rounds", "threads", "engine")}
    settings["model"] = model.model_dump(mode="json")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({**settings, **machine, "aims": AIMS, "variants": found}, indent=1) + "\n"
    )
    Console(width=110).print(
        table(found, f"{options.arch}, window {options.window}, {options.threads} threads")
    )
    return found


if __name__ == "__main__":
    main()
