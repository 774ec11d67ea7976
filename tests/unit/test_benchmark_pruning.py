"""The benchmark of pruning on a small network: the same code that measures the paper's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pruning.py"


@pytest.mark.slow
def test_the_benchmark_of_pruning_writes_its_figures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--arch=unet_w4", "--window=64", "--rounds=2", "--threads=1",
         "--variants", "0.4, coupled", "0.4, coupled, by 8", "--json", tmp_path / "small.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "small.json").read_text())
    whole, coupled, by_eight = found["variants"]
    assert whole["fewer_macs"] == whole["fewer_parameters"] == 0
    assert coupled["fewer_macs"] > by_eight["fewer_macs"] > 0
    assert coupled["parameters"] < by_eight["parameters"] < whole["parameters"]
    assert all(len(row["speed_up_by_round"]) == 2 for row in found["variants"])
    assert all(row["seconds_per_window"] > 0 for row in found["variants"])
