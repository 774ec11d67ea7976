"""The benchmark of serving measures what it says, with a small network and small windows."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from terrafine.errors import ServingError
from terrafine.export import Prediction, save_bundle
from tests.exported import described, random_model
from tests.scenes import make_project

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "serve.py"


def run(result: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON and what was printed."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--threads=1", f"--json={result}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(result.read_text()), done.stdout


@pytest.mark.slow
def test_the_overhead_is_measured_and_other_sections_keep_their_figures(tmp_path: Path) -> None:
    result = tmp_path / "serving.json"
    result.write_text('{"clients": {"rows": []}}')
    told, printed = run(
        result, "--sections", "overhead", "--arch=unet_w4", "--window=64", "--windows=4",
        "--rounds=2", "--batches", "1", "2", "--ratios", "0",
    )  # fmt: skip
    assert told["clients"] == {"rows": []}
    rows = told["overhead"]["rows"]
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
    assert "overhead" in printed


@pytest.mark.slow
def test_precisions_and_clients_of_a_bundle_are_measured_on_the_imagery_of_its_run(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path)
    info = described("unet_w4")
    save_bundle(tmp_path / "model", random_model(info), info)
    told, printed = run(
        tmp_path / "serving.json", "--sections", "precisions", "clients",
        f"--bundle={tmp_path / 'model'}", f"--spec={project.spec}", "--windows=2", "--rounds=1",
        "--batches", "1", "--clients", "1", "3", "--requests=6",
    )  # fmt: skip
    rows = told["precisions"]["rows"]
    assert [(row["variant"], row["way"], row["window"]) for row in rows] == [
        (variant, way, 96)
        for variant in ("fp32", "fp16", "int8")
        for way in ("onnxruntime", "Triton")
    ]
    for bare, asked in zip(rows[::2], rows[1::2], strict=True):
        for name in ("class_agreement", "mean_probability_error", "max_probability_error"):
            assert bare[name] == asked[name], "a server does not change what a graph says"
    exact, half, eight = rows[::2]
    assert (exact["class_agreement"], exact["max_probability_error"]) == (1, 0)
    assert exact["times_as_long"] == 1
    assert 0 < half["mean_probability_error"] < eight["mean_probability_error"]
    assert exact["graph_bytes"] > half["graph_bytes"] > eight["graph_bytes"]
    assert not exact["refused"]

    rows = told["clients"]["rows"]
    assert [(row["clients"], row["requests"]) for row in rows] == [(1, 6), (3, 6)]
    for row in rows:
        assert (row["wrong"], row["failed"], row["retried"]) == (0, 0, 0)
        assert row["mpixel_per_second"] > 0
        assert 0 < row["p50"] <= row["p99"]
        assert row["windows_per_batch"] >= 1
        assert row["queue"] >= 0
    assert "precisions" in printed
    assert "clients at once" in printed


class _Client:
    """Says the same of all windows but the third, one probability off, and the fourth, nothing."""

    def predict(self, windows_NCHW: np.ndarray) -> Prediction:
        (number,) = windows_NCHW
        if number == 3:
            raise ServingError("away")
        return answer(off=1 if number == 2 else 0)


def answer(*, off: int = 0) -> Prediction:
    sure = np.full((1, 2, 2), 200, np.uint8)
    less = sure.copy()
    less[0, 1, 1] -= off
    return Prediction(sure, sure, less)


def test_an_answer_that_is_one_byte_off_and_a_request_without_one_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    measured = importlib.import_module("serve_clients")
    left: SimpleQueue[int] = SimpleQueue()
    for number in (0, 1, 2, 3, 2, 0):
        left.put(number)
    seconds, wrong, failed = measured._ask(_Client(), left, np.arange(4), [answer()] * 4)
    assert (len(seconds), wrong, failed) == (5, 2, 1)


def test_one_wrong_answer_or_one_failed_request_ends_the_benchmark_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("serve")
    script._require_right([SimpleNamespace(wrong=0, failed=0)])
    with pytest.raises(SystemExit, match="1 answers were wrong and 2 requests failed"):
        script._require_right(
            [SimpleNamespace(wrong=1, failed=0), SimpleNamespace(wrong=0, failed=2)]
        )
