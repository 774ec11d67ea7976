"""What the workers of a map occupy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from serving.engines import RAY_ADDRESS, gpu_share
from terrafine.spec import MappingSpec


@pytest.mark.parametrize(
    ("workers", "gpus", "share"),
    [(3, 2, 1 / 2), (4, 2, 1 / 2), (5, 2, 1 / 3), (2, 4, 1.0), (2, 0, 0.0)],
)
def test_workers_with_a_network_share_the_gpus_of_this_machine_evenly(
    monkeypatch: pytest.MonkeyPatch, workers: int, gpus: int, share: float
) -> None:
    monkeypatch.delenv(RAY_ADDRESS, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert gpu_share(MappingSpec(predictor="torch", workers=workers)) == pytest.approx(share)
    if gpus:
        assert workers <= gpus * int(1 / share), "all of them find room"


def test_on_a_cluster_each_has_a_gpu_and_other_engines_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(RAY_ADDRESS, "ray:6379")
    assert gpu_share(MappingSpec(predictor="torch", workers=3)) == 1.0
    assert gpu_share(MappingSpec(predictor="onnx", workers=3)) == 0.0


def test_workers_of_a_map_and_steps_of_a_pipeline_load_nothing_that_they_do_not_use() -> None:
    """Each of them is a process of its own that waits for its imports."""
    asked = """
import sys
import serving.mapper.predictors, serving.mapper.runner
print({"torch", "pandas", "geopandas", "matplotlib", "kubernetes"} & sys.modules.keys())
import components.stage
print({"ray.train", "matplotlib", "kubernetes"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["set()", "set()", ""]
