"""Stages: done once per digest, nothing half-made, errors that name place and remedy."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from terrafine.errors import TerrafineError, explain
from terrafine.stages import ENGINE, Job
from tests.scenes import Project, make_project, write_raster

SEVENS = np.full((64, 64), 7, np.uint8)


def job_of(project: Project) -> Job:
    return Job.open(project.spec, data=None, workdir=project.root / "run")


def leftovers(project: Project) -> list[Path]:
    return [p for p in (project.root / "run").rglob("*") if ".partial" in p.name]


def test_a_stage_is_done_once_per_digest(project: Project) -> None:
    first = ENGINE.run(job_of(project), "label")
    again = ENGINE.run(job_of(project), "label")
    assert again == first
    project.change_spec(chips={"validation_fraction": 0.4})
    changed = ENGINE.run(job_of(project), "label")
    assert changed.digest != first.digest
    assert job_of(project).output(first, "chips").exists(), "the old result stays"


def test_changed_pixels_are_a_changed_input(project: Project) -> None:
    before = ENGINE.digest(job_of(project), "label")
    image = project.image_CHW.copy()
    image[0, 100, 100] += 1
    write_raster(project.root / "scene.tif", image, nodata=0)
    assert ENGINE.digest(job_of(project), "label") != before


def test_an_option_changes_only_the_stages_that_read_it(project: Project) -> None:
    names = ("label", "train-preliminary", "filter", "gate", "export", "publish")
    before = {name: ENGINE.digest(job_of(project), name) for name in names}
    project.change_spec(gate={"min_samples": 60})
    after = {name: ENGINE.digest(job_of(project), name) for name in names}
    changed = {name for name in names if before[name] != after[name]}
    assert changed == {"gate", "export", "publish"}


def test_a_stage_says_which_one_comes_first(project: Project) -> None:
    with pytest.raises(TerrafineError, match="run `terrafine label SPEC` first"):
        ENGINE.run(job_of(project), "train-preliminary")


def test_an_edited_chip_store_is_not_trained_on(project: Project) -> None:
    job = job_of(project)
    done = ENGINE.run(job, "label")
    chips = next(p for p in job.output(done, "chips").rglob("zarr.json") if "image" in str(p))
    array = zarr.open_array(chips.parent, mode="r+")
    array[2, 0, 5, 5] = 77
    with pytest.raises(TerrafineError, match="chip"):
        ENGINE.run(job, "train-preliminary")
    assert not leftovers(project)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: (p.root / "scene.tif").unlink(), "scene.tif"),
        (lambda p: os.truncate(p.root / "scene.tif", 5000), "scene.tif"),
        (lambda p: write_raster(p.root / "scene.tif", p.image_CHW[:3], nodata=0), "band"),
        (lambda p: write_raster(p.root / "scene.tif", p.image_CHW, nodata=0, crs=None), "CRS"),
        (lambda p: write_raster(p.root / "scene.tif", p.image_CHW * 0, nodata=0), "scene"),
        (
            lambda p: write_raster(
                p.root / "product.tif", np.full((64, 64), 10, np.uint8), nodata=0
                , transform=p.elsewhere
            ),
            "covers",
        ),
        (
            lambda p: write_raster(
                p.root / "scene.tif", np.full((4, 192, 192), np.nan, np.float32), nodata=None
            ),
            "row 0",
        ),
        (
            lambda p: write_raster(p.root / "product.tif", SEVENS, nodata=0),
            "codes 7",
        ),
    ],
    ids=[
        "missing image", "truncated image", "three bands", "no CRS", "all nodata", "no overlap",
        "NaN in imagery", "unknown label code",
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(
    project: Project, spoil: object, says: str
) -> None:
    assert callable(spoil)
    spoil(project)
    with pytest.raises(TerrafineError) as caught:
        ENGINE.run(job_of(project), "label")
    sentence = explain(caught.value)
    assert says in sentence
    assert "\n" not in sentence
    assert not leftovers(project)
    assert not list((project.root / "run").glob("label/*/manifest.json"))


def test_a_champion_of_another_legend_is_refused(project: Project) -> None:
    """A bundle that was trained for other classes cannot be compared, so nothing is promoted."""
    for name in ("label", "train-preliminary", "filter", "train"):
        ENGINE.run(job_of(project), name)
    trained = job_of(project).output(ENGINE.run(job_of(project), "train"), "model")
    shutil.copytree(trained, project.root / "champion")
    project.change_spec(
        gate={"champion": "champion"},
        legend={
            "name": "four",
            "classes": [
                {"code": c, "name": n, "color": "#000000"}
                for c, n in ((1, "cropland"), (2, "woodland"), (4, "water"), (5, "impervious"))
            ],
        },
        labels={"crosswalk": {10: 1, 20: 2, 60: 4, 80: 5}},
    )
    project.change_spec(assess={"reference": {
        "file": "reference.tif", "crosswalk": {1: 1, 2: 2, 4: 4, 5: 5}}})  # fmt: skip
    for name in ("label", "train-preliminary", "filter", "train"):
        ENGINE.run(job_of(project), name)
    with pytest.raises(TerrafineError, match="model bundle of another legend"):
        ENGINE.run(job_of(project), "assess")


def test_a_work_directory_that_cannot_be_written(project: Project) -> None:
    (project.root / "file").write_text("")
    job = Job.open(project.spec, data=None, workdir=project.root / "file" / "run")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        ENGINE.run(job, "label")
    assert "give a --workdir you may write to" in explain(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the small disk this fills")
def test_a_full_disk_loses_nothing_that_was_done(project: Project) -> None:
    disk = project.root / "run"
    disk.mkdir()
    size = 300_000
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises((OSError, TerrafineError)) as caught:
            ENGINE.run(job_of(project), "label")
        assert isinstance(caught.value, OSError | TerrafineError)
        sentence = explain(caught.value)
        assert "disk is full" in sentence or "No space left" in sentence
        assert not leftovers(project)
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert ENGINE.run(job_of(project), "label").metrics["chips"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_runs_do_not_work_on_one_stage(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.change_spec(training={"preliminary_epochs": 200})
    ENGINE.run(job_of(project), "label")
    command = [
        Path(sys.executable).with_name("terrafine"), "train", project.spec, "--preliminary",
        "--workdir", tmp_path / "run",
    ]  # fmt: skip
    first = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        _wait_for(
            lambda: list((tmp_path / "run").glob("train-preliminary/*.partial/checkpoints/*"))
        )
        with pytest.raises(TerrafineError, match="another process is working on this stage"):
            ENGINE.run(job_of(project), "train-preliminary")
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    # the killed run's lock is gone with it, and its epochs are not lost
    assert list((tmp_path / "run").glob("train-preliminary/*.partial/checkpoints/*"))


def _wait_for(condition: object, seconds: float = 90) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.1)
