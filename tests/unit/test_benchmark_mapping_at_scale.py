"""The benchmarks of a country, of many GPUs and of seams, at sizes that take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, result: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments, f"--json={result}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(result.read_text())
    return found


@pytest.mark.slow
def test_a_country_goes_through_ray_is_killed_at_half_and_ends_complete(tmp_path: Path) -> None:
    found = run("national_dry_run.py", tmp_path / "dry.json", "--area=20000", "--wave=4")
    assert found["shards"] >= found["resume"]["at"] >= found["shards"] / 2
    # the kill may fall between a commit and its line in the diary
    assert found["commits"] >= found["shards"] / 4 - 1
    assert found["store"]["chunks_mb"] > 0, "no chunk may hide in a manifest"
    assert found["resume"]["seconds_to_first_shard"] > 0
    hours = [row["hours"] for row in found["real_run"]]
    assert hours == sorted(hours, reverse=True)


def test_the_simulation_names_what_holds_the_gpus_back(tmp_path: Path) -> None:
    found = run("scaling.py", tmp_path / "scaling.json", "--shards=2000", "--measure=0",
                f"--results={tmp_path}")  # fmt: skip
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    needed = found["cores_needed_per_gpu"]
    assert 4 < needed < 16
    starved, fed = found["simulated"]["4"], found["simulated"]["16"]
    assert {row["bottleneck"] for row in starved[:4]} == {"reading cores"}
    assert fed[0]["bottleneck"] == "GPUs"
    assert fed[-1]["bottleneck"] == "driver and commits"
    # what a GPU gives as long as it never waits, and no more
    assert fed[3]["mpixel_per_second"] == pytest.approx(8 * fed[0]["mpixel_per_second"], rel=0.05)
    assert all(share < 1.05 for row in starved + fed for share in row["busy"].values())


@pytest.mark.slow
def test_the_edge_of_a_window_is_felt_less_the_wider_the_halo(tmp_path: Path) -> None:
    found = run(
        "seams.py", tmp_path / "seams.json", f"--into={tmp_path / 'work'}", "--arch=hrnet_w2",
        "--stem-channels=4", "--size=256", "--chip=64", "--crop=32", "--epochs=1", "--core=64",
        "--halos", "0", "16", "64", "--cores", "--precision=fp32", "--norms", "batch",
    )  # fmt: skip
    (network,) = found["networks"]
    none, narrow, wide = network["rows"][:3]
    assert none["p999"] > narrow["p999"] > wide["p999"]
    assert narrow["step"]["max"] > wide["step"]["max"]
    assert (tmp_path / "seams.png").stat().st_size > 10_000
