"""The training benchmark on the CPU: the same code that measures a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from terrafine.models import describe

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_gpu.py"


@pytest.mark.slow
def test_the_benchmark_of_training_writes_its_figures(tmp_path: Path) -> None:
    modes = ["eager", "channels_last", "bf16", "bf16_channels_last"]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device=cpu", "--arch=hrnet_w2", "--stem-channels=4",
         "--crop=33", "--batch=3", "--steps=3", "--warmup=1", "--matrix=128",
         "--modes", *modes, "--json", tmp_path / "cpu.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert result["device"]
    cost = describe("hrnet_w2", 4, 7, stem_channels=4)
    assert result["macs_per_pixel"] == cost["macs_per_pixel"]
    assert [speed["mode"] for speed in result["speeds"]] == [*modes, "loop"]
    for speed in result["speeds"]:
        assert speed["images_per_second"] == pytest.approx(
            3 / (speed["milliseconds_per_step"] / 1e3), rel=0.01
        )
        # forward and twice as much backward, two operations each
        flops = 3 * 2 * cost["macs_per_pixel"] * 33**2 * speed["images_per_second"]
        assert speed["teraflops"] == pytest.approx(flops / 1e12, rel=0.1, abs=1e-4)
        assert speed["peak_memory_gib"] > 0
    assert 0 <= result["speeds"][-1]["loader_wait"] < 1
    assert "loop" in done.stdout


def test_a_gpu_that_is_not_there_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device=cuda"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "torch finds no GPU here; give --device cpu" in done.stderr
