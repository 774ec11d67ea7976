"""The loader's benchmark measures what it says, on a store of a few chips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loader.py"


@pytest.mark.slow
def test_the_benchmark_of_the_loader_writes_its_figures(tmp_path: Path) -> None:
    options = {"gigabytes": 0.004, "memory": 900, "chip": 128, "crop": 65, "crops": 20, "steps": 2}
    options |= {"arch": "unet_w2"}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--json", tmp_path / "loader.json", "--folder",
         tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "loader.json").read_text())
    small, _, large = result["stores"]
    assert (small["chips"], large["chips"]) == (16, 30)
    for store in result["stores"]:
        # a crop of 65 touches one chunk of the 128 x 128 chip
        assert store["megabytes_decoded_per_crop"] == pytest.approx(128 * 128 * 9 / 1e6, abs=0.01)
        assert store["share_of_raw_decompression"] > 0
        assert 0 < store["peak_memory_megabytes"] < 900
    assert 0 <= result["training"]["share_of_step_waiting"] < 1
    assert list(tmp_path.iterdir()) == [tmp_path / "loader.json"], "the stores are removed"
    assert "crops per core second" in done.stdout
