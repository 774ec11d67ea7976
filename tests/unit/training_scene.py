"""A small landscape that a tiny network learns in seconds, shared by the training tests.

Run as a script it trains until it is killed: ``training_scene.py FOLDER STOP_AFTER_CROPS``.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from terrafine.legend import Legend
from terrafine.models import RawInput, RawModel, build_network
from terrafine.pruning import plan_pruning, zero_filters
from terrafine.spec import ModelSpec, PruneSpec, TrainingSpec
from terrafine.storage import Storage
from terrafine.training import STEPS, TrainingResult, train

FILL = 65535
SIZE = 48
CHIPS = 6
EPOCHS = 4
LEGEND = Legend.model_validate(
    {
        "name": "three",
        "classes": [
            {"code": 2, "name": "wood", "color": "#006400"},
            {"code": 4, "name": "water", "color": "#0064c8"},
            {"code": 9, "name": "town", "color": "#fa0000"},
        ],
    }
)
SPEC = TrainingSpec(
    batch=4,
    crop=32,
    crops_per_chip=2,
    learning_rate=0.02,
    class_weights={"town": 3.0},
    device="cpu",
)


class Landscape:
    """Chips in memory: every class a brightness of its own, in rectangles."""

    size = SIZE

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        index = np.repeat(np.repeat(rng.integers(0, 3, (CHIPS, 4, 4)), 12, 1), 12, 2)
        noise = rng.normal(0, 20, (CHIPS, 2, SIZE, SIZE))
        self.image = (300 + 200 * index[:, None] + noise).astype(np.uint16)
        self.label = LEGEND.code_table[index]
        self.crops_read = 0

    def __len__(self) -> int:
        return len(self.image)

    def name(self, index: int) -> str:
        return f"field-{index}"

    def crop(self, index: int, row: int, col: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        self.crops_read += 1
        rows, cols = slice(row, row + size), slice(col, col + size)
        return self.image[index, :, rows, cols], self.label[index, rows, cols]


class Stalling(Landscape):
    """A source that hangs after so many crops, for the parent to kill."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def crop(self, index: int, row: int, col: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        if self.crops_read == self.after:
            time.sleep(600)
        return super().crop(index, row, col, size)


class StopAfter:
    """Stops a training, on every worker, once this step is safe."""

    def __init__(self, last: int) -> None:
        self.last = last

    def step(self, record: object) -> None: ...

    def epoch(self, record: object) -> None: ...

    def checkpoint(self, step: int) -> None:
        if step == self.last:
            raise KeyboardInterrupt


class FewLayers(nn.Sequential):
    """Convolutions with batch norm and dropout: what a training has to carry along, in little."""

    def __init__(self, bands: int, *, dropout: float, ballast: int = 0) -> None:
        super().__init__(
            nn.Conv2d(bands, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(8, len(LEGEND.classes), 1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )
        # makes checkpoints larger
        self.register_buffer("ballast", torch.randn(ballast))


def tiny_model(seed: int = 0, *, dropout: float = 0.2, ballast: int = 0) -> RawModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FewLayers(2, dropout=dropout, ballast=ballast)
    return RawModel(RawInput([500.0, 500.0], [160.0, 160.0], FILL), network)


def pruning_of(model: RawModel, ratio: float = 0.5) -> Callable[[RawModel], None]:
    """What zeroes that share of the filters of every layer."""
    plan = plan_pruning(model.network, PruneSpec(ratio=ratio), bands=2)
    return lambda trained: zero_filters(trained.network, plan)


def small_hrnet(seed: int = 0) -> RawModel:
    model = ModelSpec(
        arch="hrnet_w2", stem_channels=8, stem_strides=(2, 2), first_norm="instance-batch"
    )
    network = build_network(model, bands=2, classes=3, seed=seed)
    return RawModel(RawInput([500.0, 500.0], [160.0, 160.0], FILL), network)


def run(folder: Path, source: Landscape | None = None, **changes: object) -> TrainingResult:
    arguments: dict[str, object] = {
        "source": source or Landscape(),
        "train": [0, 1, 2, 3],
        "validation": [4, 5],
        "model": tiny_model(),
        "legend": LEGEND,
        "class_weights": (1.0, 1.0, 3.0),
        "spec": SPEC,
        "epochs": EPOCHS,
        "seed": 3,
        "storage": Storage.at(folder),
        "heading": "train",
    }
    return train(**(arguments | changes))  # type: ignore[arg-type]


def with_spec(**changes: object) -> TrainingSpec:
    return SPEC.model_copy(update=changes)


def losses(folder: Path) -> list[tuple[int, str]]:
    """Step and loss of every row of a training's curve."""
    with (folder / STEPS).open() as file:
        return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file)]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Stalling(int(sys.argv[2])), spec=with_spec(checkpoint_steps=1))
