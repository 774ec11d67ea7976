"""How fast a network trains on this machine, beside what its matrix units can do.

    python benchmarks/train_gpu.py                       # on a GPU: 513-crops, batch of 32
    python benchmarks/train_gpu.py --arch unet_w64 --modes bf16_channels_last compiled
    python benchmarks/train_gpu.py --device cpu --arch hrnet_w4 --crop 65 --batch 4 --steps 3

Each mode takes whole optimiser steps (raw uint16 crops to updated weights) on crops that lie on
the device already; "loop" is `terrafine.training.train` itself, with crops cut from chips in
memory. FLOPs are counted as three times those of the forward pass. Where a batch does not fit into
memory it is taken in halves, quarters and so on, whose gradients are added up.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional

from terrafine.legend import SEVEN
from terrafine.models import RawInput, RawModel, build_network, describe_spec
from terrafine.spec import ModelSpec, TrainingSpec
from terrafine.storage import Storage
from terrafine.training import StepRecord, Unobserved, train

RESULTS = Path(__file__).parent / "results"
BANDS = 4
# Forward, gradient of the inputs, gradient of the weights.
PASSES = 3
IGNORED = 255
LOOP = "loop"


@dataclass(frozen=True)
class Mode:
    """One way to run the same step."""

    bf16: bool
    channels_last: bool
    compiled: bool

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"


MODES = {
    "eager": Mode(bf16=False, channels_last=False, compiled=False),
    "channels_last": Mode(bf16=False, channels_last=True, compiled=False),
    "bf16": Mode(bf16=True, channels_last=False, compiled=False),
    "bf16_channels_last": Mode(bf16=True, channels_last=True, compiled=False),
    "compiled": Mode(bf16=True, channels_last=True, compiled=True),
}


@dataclass(frozen=True)
class Speed:
    """What one mode reached. ``share_of_matrix_throughput``: of what one large product reached in
    the same precision; ``loader_wait``: share of the time spent waiting for crops."""

    mode: str
    precision: str
    micro_batch: int
    milliseconds_per_step: float
    images_per_second: float
    teraflops: float
    share_of_matrix_throughput: float
    peak_memory_gib: float
    loader_wait: float | None = None


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    # what cuDNN does with fp32 convolutions anyway, so that both sides of the ratio are alike
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model = ModelSpec(
        arch=options.arch,
        stem_channels=options.stem_channels,
        stem_strides=tuple(options.stem_strides),
    )
    cost = describe_spec(model, bands=BANDS, classes=len(SEVEN.classes))
    bench = Bench(options, model, cost["macs_per_pixel"])
    for name in options.modes:
        bench.measure(name)
    if not options.skip_loop:
        bench.measure_loop()
    result = {
        **_machine(device),
        **cost,
        "crop": options.crop,
        "batch": options.batch,
        "steps": options.steps,
        "matrix_teraflops": bench.matrix_teraflops,
        "speeds": [asdict(speed) for speed in bench.speeds],
        "failed": bench.failed,
    }
    path = options.json or RESULTS / f"train_{_slug(result['device'])}_{options.arch}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    _show(result, path)


class Bench:
    """Measures modes one after the other and keeps what they reached."""

    def __init__(self, options: argparse.Namespace, model: ModelSpec, macs_per_pixel: int) -> None:
        self.options, self.model, self.device = options, model, torch.device(options.device)
        self.step_flops = PASSES * 2 * macs_per_pixel * options.crop**2 * options.batch
        self.matrix_teraflops = {
            name: matrix_teraflops(dtype, options.matrix, self.device)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        }
        self.speeds: list[Speed] = []
        self.failed: dict[str, str] = {}

    def measure(self, name: str) -> None:
        """Median step of a mode, in the largest micro batch that fits."""
        mode, micro = MODES[name], self.options.batch
        while micro:
            _forget_memory(self.device)
            try:
                seconds = self._seconds(_stepper(self.model, mode, self.device), micro)
            except torch.OutOfMemoryError as error:
                micro //= 2
                self.failed[name] = f"one crop does not fit: {str(error).splitlines()[0]}"
            except TorchDynamoException as error:
                self.failed[name] = f"torch cannot compile here: {str(error).splitlines()[0]}"
                return
            else:
                self.failed.pop(name, None)
                self._add(name, mode.precision, micro, seconds)
                return

    def measure_loop(self) -> None:
        """The training loop as it is used, reading crops from chips in memory."""
        reached = [speed for speed in self.speeds if speed.precision == "bf16"]
        micro = max((speed.micro_batch for speed in reached), default=self.options.batch)
        _forget_memory(self.device)
        records = self._train(micro, compiled=any(s.mode == "compiled" for s in self.speeds))
        steady = records[len(records) // 2 :]
        seconds = statistics.median(r.pixels / r.pixels_per_second for r in steady)
        wait = statistics.mean(r.loader_wait for r in steady)
        self._add(LOOP, "bf16" if self.device.type == "cuda" else "fp32", micro, seconds, wait)

    def _seconds(self, step: Callable[[list[tuple[Tensor, Tensor]]], None], micro: int) -> float:
        crops = _crops(self.options.batch, self.options.crop)
        parts = [
            (image.to(self.device), label.to(self.device))
            for image, label in zip(*(array.split(micro) for array in crops), strict=True)
        ]
        times = []
        for number in range(self.options.warmup + self.options.steps):
            _synchronise(self.device)
            started = time.perf_counter()
            step(parts)
            _synchronise(self.device)
            if number >= self.options.warmup:
                times.append(time.perf_counter() - started)
        return statistics.median(times)

    def _train(self, micro: int, *, compiled: bool) -> list[StepRecord]:
        options, watch = self.options, _Watch()
        steps = options.warmup + options.steps
        chips = max(2, options.batch // 4)
        source = _Chips(chips, options.crop + options.crop // 2)
        with tempfile.TemporaryDirectory(prefix="train-") as folder:
            train(
                source,
                train=range(chips - 1),
                validation=[chips - 1],
                model=_raw_model(self.model),
                legend=SEVEN,
                class_weights=(1.0,) * len(SEVEN.classes),
                spec=TrainingSpec(
                    batch=options.batch,
                    micro_batch=micro,
                    crop=options.crop,
                    crops_per_chip=-(-steps * options.batch // (chips - 1)),
                    device=self.device.type,
                    loader_workers=options.loader_workers,
                    compile=compiled,
                    checkpoint_steps=10**6,
                    class_weights={},
                ),
                epochs=1,
                seed=0,
                storage=Storage.at(folder),
                heading=LOOP,
                observer=watch,
            )
        return watch.records

    def _add(
        self, name: str, precision: str, micro: int, seconds: float, wait: float | None = None
    ) -> None:
        images = self.options.batch / seconds
        flops = self.step_flops / seconds / 1e12
        self.speeds.append(
            Speed(
                mode=name,
                precision=precision,
                micro_batch=micro,
                milliseconds_per_step=round(1e3 * seconds, 2),
                images_per_second=round(images, 3),
                teraflops=round(flops, 6),
                share_of_matrix_throughput=round(flops / self.matrix_teraflops[precision], 4),
                peak_memory_gib=round(_peak_gib(self.device), 2),
                loader_wait=None if wait is None else round(wait, 4),
            )
        )


def matrix_teraflops(dtype: torch.dtype, side: int, device: torch.device) -> float:
    """Median of products of two ``side`` x ``side`` matrices, in 10^12 operations a second."""
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(12):
        _synchronise(device)
        started = time.perf_counter()
        first @ second
        _synchronise(device)
        times.append(time.perf_counter() - started)
    return round(2 * side**3 / statistics.median(times[2:]) / 1e12, 6)


class _Chips:
    """Random chips in memory."""

    def __init__(self, count: int, size: int) -> None:
        rng = np.random.default_rng(0)
        self.size = size
        self._image = rng.integers(1, 4000, (count, BANDS, size, size), np.uint16)
        codes = np.array(SEVEN.codes, np.uint8)
        self._label = codes[rng.integers(0, len(codes), (count, size, size))]

    def __len__(self) -> int:
        return len(self._image)

    def crop(self, index: int, row: int, col: int, size: int) -> tuple[Any, Any]:
        rows, cols = slice(row, row + size), slice(col, col + size)
        return self._image[index, :, rows, cols], self._label[index, rows, cols]

    def name(self, index: int) -> str:
        return f"random-{index}"


class _Watch(Unobserved):
    """Keeps what is known of each step."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def step(self, record: StepRecord) -> None:
        self.records.append(record)


def _forget_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float:
    """Most that tensors took since then on a GPU; on the CPU, that this process ever took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux


def _stepper(
    spec: ModelSpec, mode: Mode, device: torch.device
) -> Callable[[list[tuple[Tensor, Tensor]]], None]:
    """One optimiser step on the parts of a batch."""
    model = _raw_model(spec).to(device).train()
    if mode.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    forward: Callable[[Tensor], Tensor] = torch.compile(model) if mode.compiled else model

    def step(parts: list[tuple[Tensor, Tensor]]) -> None:
        optimiser.zero_grad()
        for image, label in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=mode.bf16):
                logits = forward(image)
            loss = functional.cross_entropy(logits.float(), label, ignore_index=IGNORED)
            (loss / len(parts)).backward()
        optimiser.step()

    return step


def _raw_model(spec: ModelSpec) -> RawModel:
    network = build_network(spec, bands=BANDS, classes=len(SEVEN.classes))
    return RawModel(RawInput([2000.0] * BANDS, [1100.0] * BANDS, fill=0), network)


def _crops(count: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(1, 4000, (count, BANDS, size, size), generator=generator)
    label = torch.randint(0, len(SEVEN.classes), (count, size, size), generator=generator)
    return image.to(torch.uint16), label


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _machine(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else _processor()
    return {
        "device": name,
        "threads": None if cuda else torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
    }


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _show(result: dict[str, Any], path: Path) -> None:
    table = Table(
        "mode", "micro", "ms / step", "images/s", "TFLOP/s", "of matrix", "GiB", "wait",
        title=f"{result['arch']}, batch {result['batch']} of {result['crop']} x {result['crop']} "
        f"on {result['device']}",
    )  # fmt: skip
    for speed in result["speeds"]:
        wait = speed["loader_wait"]
        table.add_row(
            speed["mode"], str(speed["micro_batch"]), f"{speed['milliseconds_per_step']:.1f}",
            f"{speed['images_per_second']:.1f}", f"{speed['teraflops']:.3g}",
            f"{speed['share_of_matrix_throughput']:.1%}",
            f"{speed['peak_memory_gib']:.2f}", "" if wait is None else f"{wait:.1%}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    matrix = ", ".join(f"{k} {v:.4g}" for k, v in result["matrix_teraflops"].items())
    console.print(f"matrix products, TFLOP/s: {matrix} (fp32 as TF32 on CUDA)")
    for name, reason in result["failed"].items():
        console.print(f"not measured: {name}: {reason}", markup=False)
    console.print(f"written: {path}", soft_wrap=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu")
    parser.add_argument("--arch", default="hrnet_w24")
    parser.add_argument("--stem-channels", type=int, default=64)
    parser.add_argument("--stem-strides", type=int, nargs=2, default=(2, 1))
    parser.add_argument("--crop", type=int, default=513, help="pixels a side")
    parser.add_argument("--batch", type=int, default=32, help="crops of an optimiser step")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--skip-loop", action="store_true", help="leave out the training loop")
    parser.add_argument("--loader-workers", type=int, default=0, help="of the training loop")
    parser.add_argument("--steps", type=int, default=20, help="measured")
    parser.add_argument("--warmup", type=int, default=5, help="steps before that")
    parser.add_argument("--matrix", type=int, help="side of the matrices; default 8192, CPU 1024")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/train_<device>...")
    options = parser.parse_args()
    options.matrix = options.matrix or (8192 if options.device == "cuda" else 1024)
    if options.device == "cuda" and not cuda:
        parser.error("--device cuda: torch finds no GPU here; give --device cpu")
    return options


if __name__ == "__main__":
    main()
