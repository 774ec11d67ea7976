"""Map two shards at once, as a worker does, and print the most memory that took: SHARD.

Imagery and model are made of noise that costs no memory, so that what is counted is the mapper's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapStore, Plan, Prediction, ShardWriter
from terrafine.spec import MappingSpec
from tests.imagery import GRID

NOISE = np.random.default_rng(0).integers(1, 200, (4, 1280, 1280), np.uint16)
SAID = NOISE[0].astype(np.uint8)


@dataclass(frozen=True)
class Noise:
    """Imagery without end."""

    window: Window
    zone: str = "epsg32650"
    grid: PixelGrid = GRID
    fill: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def touches(self, window: Window) -> bool:
        return window.intersection(self.window) is not None

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        return NOISE.copy(), np.ones(window.shape, np.uint16)


class NoModel:
    """Says what it likes."""

    window = 1280

    def predict(self, windows_NCHW: np.ndarray) -> Prediction:
        return Prediction(SAID[None], (SAID[None] % 7 + 1), SAID[None])


def most_memory() -> int:
    """Bytes that this process has ever taken."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main(size: int) -> None:
    spec, imagery = MappingSpec(shard=size), Noise(Window(0, 0, size, 2 * size))
    plan = Plan.of(imagery, spec)
    with tempfile.TemporaryDirectory() as folder:
        store = MapStore.create(Path(folder) / "map", [plan], SEVEN)
        with store.run([plan], model="m", spec="s", scenes=["noise"], mapping={}) as run:
            write = ShardWriter(run.target, {imagery.zone: imagery}, NoModel, spec, SEVEN)
            before = most_memory()
            with ThreadPoolExecutor(2) as pool:
                for receipt in pool.map(write, run.todo()):
                    run.accept(receipt)
            run.commit()
    print(json.dumps({"shard": size, "before": before, "most": most_memory()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
