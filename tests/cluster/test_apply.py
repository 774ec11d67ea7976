"""The manifests on a real API server, with the custom resources' definitions installed there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from terrafine.cli.k8s import kustomize

K8S = Path(__file__).parents[2] / "k8s"
KUBECTL = str(Path(sys.executable).parent / "kubectl")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        "KUBECONFIG" not in os.environ, reason="KUBECONFIG is unset: no cluster to apply to"
    ),
]


def kubectl(*arguments: str, given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KUBECTL, *arguments, "-f", "-"], input=given, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("overlay", ["single-node", "gpu-16", "gpu-16-keda", "object-store"])
def test_an_overlay_applied_again_changes_nothing(overlay: str) -> None:
    manifests = kustomize(K8S / "overlays" / overlay)
    if overlay != "single-node":
        # claims cannot be changed, and those of the overlay before this one are of another kind
        kept = [r for r in yaml.safe_load_all(manifests) if r["kind"] != "PersistentVolumeClaim"]
        manifests = yaml.safe_dump_all(kept)
    for _ in range(2):
        # an overlay before this one may own the same fields: they are this one's now
        done = kubectl("apply", "--server-side", "--force-conflicts", given=manifests)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    different = kubectl("diff", "--server-side", "--force-conflicts", given=manifests)
    assert different.returncode == 0, different.stdout + different.stderr


@pytest.mark.parametrize("example", ["map-region", "deploy", "job", "shell"])
def test_an_example_is_admitted(example: str) -> None:
    text = (K8S / "examples" / f"{example}.yaml").read_text()
    done = kubectl("apply", "--server-side", "--dry-run=server", given=text)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
