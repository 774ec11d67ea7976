"""The benchmark of serving measures what it says, with a small network and small windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve.py"


@pytest.mark.slow
def test_the_benchmark_of_serving_writes_its_figures(tmp_path: Path) -> None:
    result = tmp_path / "serving.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--arch=unet_w4", "--window=64", "--windows=4", "--rounds=2",
         "--batches", "1", "2", "--ratios", "0", "--threads=1", f"--json={result}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(result.read_text())["rows"]
    assert [(row["batch"], row["way"]) for row in rows] == [
        (batch, way) for batch in (1, 2) for way in ("onnxruntime", "gRPC", "shared memory")
    ]
    for row in rows:
        assert row["seconds_per_window"] > 0
        if row["way"] == "gRPC":
            assert 8 <= row["sent_per_pixel"] < 8.1
            assert 3 <= row["received_per_pixel"] < 3.1
        else:
            assert row["sent_per_pixel"] < 0.2
        if row["way"] != "onnxruntime":
            assert 0 < row["compute"] < row["seconds_per_window"] * 1.5
    assert "overhead" in done.stdout
