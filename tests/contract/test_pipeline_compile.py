"""`terrafine pipeline compile`: image and GPUs fit together, and `kubectl apply` gets labels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster import gpus_for
from terrafine.cli.pipeline import Pipeline, write_manifests

GOLDEN = Path(__file__).parent


def test_what_kubectl_applies_is_the_committed_one(tmp_path: Path) -> None:
    """The smallest pipeline, since compiling takes seconds."""
    name = f"{Pipeline.map_only}.manifests.yaml"
    made = write_manifests(Pipeline.map_only, tmp_path / name, "kubeflow").read_text()
    assert made == (GOLDEN / name).read_text(), "if it is meant: `make golden`"


@pytest.mark.parametrize(
    ("image", "said", "gpus"),
    [
        ("terrafine:0.1.0", None, 0),
        ("registry.example:5000/terrafine:0.1.0-cuda", None, 1),
        (f"registry.example/terrafine:0.1.0-cuda@sha256:{64 * 'a'}", None, 1),
        ("registry-cuda.example/terrafine:0.1.0", None, 0),
        ("registry.example/terrafine:0.1.0", "2", 2),
        ("terrafine:0.1.0-cuda", "0", 0),
    ],
)
def test_gpus_fit_to_the_image_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, image: str, said: str | None, gpus: int
) -> None:
    monkeypatch.delenv("TERRAFINE_GPUS", raising=False)
    if said is not None:
        monkeypatch.setenv("TERRAFINE_GPUS", said)
    assert gpus_for(image) == gpus


def test_steps_of_a_cuda_image_that_infer_ask_for_a_gpu(tmp_path: Path) -> None:
    """Image and GPUs are read when the pipelines are imported, so in a process of its own."""
    image = "registry.example:5000/terrafine:0.1.0-cuda"
    command = "import sys; from terrafine.cli.main import main; sys.exit(main())"
    subprocess.run(
        [
            sys.executable, "-c", command,
            "pipeline", "compile", "--pipeline", "retrain", "--into", tmp_path,
        ],
        env={**os.environ, "TERRAFINE_IMAGE": image}, check=True, capture_output=True, timeout=250,
    )  # fmt: skip
    pipeline, platform = yaml.load_all((tmp_path / "retrain.yaml").read_text(), yaml.CSafeLoader)
    kubernetes: Any = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, executor in pipeline["deploymentSpec"]["executors"].items():
        infers = label in ("exec-filter-chips", "exec-assess")
        resources, told = executor["container"]["resources"], kubernetes[label]
        assert executor["container"]["image"] == image
        assert resources.get("accelerator", {}).get("count") == ("1" if infers else None)
        assert ("tolerations" in told, "nodeSelector" in told) == (infers, infers)
