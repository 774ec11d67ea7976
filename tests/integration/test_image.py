"""The image: built from a base made here, run as a cluster runs it, and the pipeline inside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rasterio

from terrafine import __version__
from tests.containers import Docker, build_image, docker_daemon, make_base, served_wheels
from tests.scenes import make_project

ROOT = Path(__file__).parents[2]
IMAGE = "terrafine:tested"
USER = 10001
# as restricted Pod Security has it
RESTRICTED: dict[str, Any] = {
    "user": f"{USER}:{USER}",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": "size=1g"},
    "mem_limit": "4g",
}

pytestmark = [pytest.mark.slow, pytest.mark.minutes(9), pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """The unmodified Dockerfile, built."""
    folder = tmp_path_factory.mktemp("docker")
    with docker_daemon(folder / "daemon") as docker, served_wheels() as arguments:
        make_base(docker.client, folder)
        arguments |= {"VERSION": __version__, "REVISION": "tested"}
        build_image(docker.client, ROOT, IMAGE, arguments)
        yield docker


def run(docker: Docker, *command: str, **options: Any) -> str:
    """What a container prints that runs under the restrictions of a cluster."""
    settings = {**RESTRICTED, "network_mode": "none", "remove": True, **options}
    return docker.client.containers.run(IMAGE, list(command), **settings).decode()


def test_it_runs_without_root_on_a_read_only_root_in_little_memory(built: Docker) -> None:
    assert run(built, "--version", mem_limit="1g").strip() == f"terrafine {__version__}"
    who = "import os; print(os.getuid(), os.access('/', os.W_OK), os.access('/work', os.W_OK))"
    assert run(built, "-c", who, entrypoint=["python"]).split() == [str(USER), "False", "False"]


def test_it_says_what_it_is_and_is_no_larger_than_it_must_be(
    built: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    image = built.client.images.get(IMAGE)
    labels = {k.removeprefix("org.opencontainers.image."): v for k, v in image.labels.items()}
    assert labels["version"] == __version__
    assert labels["revision"] == "tested"
    assert labels["licenses"] == "Apache-2.0"
    assert image.attrs["Config"]["User"] == f"{USER}:{USER}"
    size = image.attrs["Size"] / 1e9
    with capsys.disabled():  # a log of CI is to show it
        print(f"\nsize of the CPU image: {size:.2f} GB", file=sys.stderr)
    assert size < 3.5, "something large has crept in"


def test_nothing_in_it_compiles_and_nothing_is_left_of_the_build(built: Docker) -> None:
    left = "/src /opt/build /tmp/wheels /root/.cache /var/lib/apt/lists/*_Packages"
    look = f"which gcc cc g++ make ld; ls -d {left} 2>/dev/null; true"
    assert run(built, "-c", look, entrypoint=["sh"]).strip() == ""


def test_files_can_be_copied_through_it(built: Docker) -> None:
    """`kubectl cp` runs tar in k8s/examples/shell.yaml, which sleeps under tini."""
    look = "which tar tini sleep"
    assert len(run(built, "-c", look, entrypoint=["sh"]).split()) == 3


def test_the_bill_of_materials_is_what_the_lock_file_pins(built: Docker) -> None:
    bill = json.loads(run(built, "/opt/terrafine/sbom.json", entrypoint=["cat"]))
    assert bill["bomFormat"] == "CycloneDX"
    installed = {c["name"].lower(): c["version"].partition("+")[0] for c in bill["components"]}
    pinned = dict(
        line.strip().split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    )
    assert {"torch", "ray", "kfp", "zarr"} <= set(installed)
    assert "pytest" not in installed
    for name, version in installed.items():
        assert name == "terrafine" or pinned[name.replace("_", "-")] == version, name


def test_the_pipeline_runs_in_containers_and_makes_a_map(built: Docker, tmp_path: Path) -> None:
    project = make_project(tmp_path)
    os.chown(tmp_path, USER, USER)
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline_in_containers", tmp_path, json.dumps(RESTRICTED)],
        env={**os.environ, "DOCKER_HOST": built.address, "TERRAFINE_IMAGE": IMAGE},
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    made = tmp_path / "run/publish/latest/landcover.tif"
    assert made.stat().st_uid == USER
    with rasterio.open(made) as landcover, rasterio.open(project.root / "scene.tif") as scene:
        assert (landcover.crs, landcover.transform) == (scene.crs, scene.transform)
        assert landcover.shape == scene.shape
