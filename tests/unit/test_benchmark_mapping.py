"""The benchmark of the mapper measures what it says, with a small network and small windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mapping.py"


@pytest.mark.slow
def test_the_benchmark_of_the_mapper_writes_its_figures(tmp_path: Path) -> None:
    result = tmp_path / "mapping.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--sections", "small", "host", "--small=unet_w4", "--side=128",
         "--core=32", "--halo=16", "--shard=64", "--block=32", "--threads=1", "--rounds=1",
         "--engines", "--host-ways", "terrafine nothing", "floor", f"--json={result}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(result.read_text())
    assert set(told["core_seconds_per_mpixel"]) == {"read", "enhance", "write"}
    rows = told["rows"]
    assert [(row["section"], row["way"]) for row in rows] == [
        ("small", "plain"),
        ("small", "terrafine onnx"),
        ("host", "terrafine nothing"),
        ("host", "floor"),
    ]
    assert rows[0]["times_as_fast"] == rows[0]["memory_ratio"] == 1
    for row in rows:
        assert row["seconds"] > 0
        assert row["memory_mb"] > 30
        assert {"read", "write"} <= row["seconds_per_mpixel"].keys()
    assert {"infer", "enhance", "commit"} <= rows[1]["seconds_per_mpixel"].keys()
    assert "times as fast" in " ".join(done.stdout.split())
