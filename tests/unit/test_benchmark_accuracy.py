"""The accuracy benchmark runs both recipes and the oracle, and holds aims against figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accuracy.py"


@pytest.mark.slow
def test_the_benchmark_of_accuracy_writes_its_figures_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    command = [
        sys.executable, SCRIPT, "landscape", "--into", tmp_path / "work", "--size=512",
        "--scenes=1", "--chip=64", "--crop=48", "--crops-per-chip=1", "--epochs=2",
        "--preliminary-epochs=1", "--arch=unet_w4", "--json", tmp_path / "accuracy.json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done, again = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert again.stdout.count("done before") == 3 * 6, "no stage is run again"
    result = json.loads((tmp_path / "accuracy.json").read_text())
    paper, ours, oracle = result["comparison"]["rows"]
    assert [row["variant"] for row in (paper, ours, oracle)] == ["paper", "terrafine", "oracle"]
    aims = result["aims"]
    assert aims["product"] == pytest.approx(0.81, abs=0.03)
    assert aims["terrafine_over_paper"]["found"] == pytest.approx(
        ours["report"]["overall_accuracy"]["value"] - paper["report"]["overall_accuracy"]["value"]
    )
    for row in (paper, ours, oracle):
        assert 0 < row["at_edges"]["samples"] < row["report"]["samples"]
    assert "way from the labels to the oracle" in done.stdout
