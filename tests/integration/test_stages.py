"""Stages: done once per digest, nothing half-made, errors that name place and remedy."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import zarr

from terrafine.accuracy import Figure, Front, Place
from terrafine.chips import BuildRunner, local_runner
from terrafine.errors import StageError, TerrafineError, explain
from terrafine.export import load_bundle, save_bundle
from terrafine.mapping import open_map
from terrafine.stages import ENGINE, Job, engine
from terrafine.stages.engine import file_digest
from terrafine.stages.fit import TrainingTask, fit
from terrafine.training import TrainingResult
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
    before = ENGINE.digests(job_of(project), "label")["label"]
    image = project.image_CHW.copy()
    image[0, 100, 100] += 1
    write_raster(project.root / "scene.tif", image, nodata=0)
    assert ENGINE.digests(job_of(project), "label")["label"] != before


def test_data_that_change_while_a_stage_works_on_them_leave_no_result(project: Project) -> None:
    job = job_of(project)
    scene = project.root / "scene.tif"
    before = scene.read_bytes()

    def changing(workers: int) -> BuildRunner:
        scene.write_bytes(before + b" ")
        return local_runner(workers)

    with pytest.raises(StageError, match=r"scene\.tif.* changed while stage label worked"):
        ENGINE.run(replace(job, chip_runner=changing), "label")
    assert not list(job.workdir.glob("label/*/manifest.json"))
    assert not leftovers(project)
    scene.write_bytes(before)
    assert ENGINE.find(job, "label") is None, "nothing under the digest of what they were"
    assert ENGINE.run(job, "label").sources["scene.tif"] == file_digest(scene)


def test_an_option_changes_only_the_stages_that_read_it(project: Project) -> None:
    names = ENGINE.names(job_of(project).spec)
    before = {name: ENGINE.digests(job_of(project), name)[name] for name in names}
    project.change_spec(gate={"min_samples": 60})
    after = {name: ENGINE.digests(job_of(project), name)[name] for name in names}
    changed = {name for name in names if before[name] != after[name]}
    assert changed == {"gate", "export", "deploy", "map", "publish", "refuse"}


def test_settings_of_the_machine_change_no_digest(project: Project) -> None:
    before = ENGINE.digests(job_of(project), "publish")
    project.change_spec(
        training={"loader_workers": 2},
        map={"threads": 1, "wave": 3, "workers": 2, "storage": "s3://b/map"},
    )
    assert ENGINE.digests(job_of(project), "publish") == before


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
    for name in ("label", "train-preliminary", "filter", "train", "prune"):
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
    for name in ("label", "train-preliminary", "filter", "train", "prune"):
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
        # what the label stage goes on from, and nothing that could be taken for its result
        assert all(path.parent.name == "label" for path in leftovers(project))
        assert ENGINE.find(job_of(project), "label") is None
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert ENGINE.run(job_of(project), "label").metrics["chips"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_runs_do_not_work_on_one_stage(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.change_spec(training={"preliminary_epochs": 2000})
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
            lambda: list(
                (tmp_path / "run").glob("train-preliminary/*.partial/training/checkpoints/*")
            )
        )
        with pytest.raises(TerrafineError, match="another process is working on this stage"):
            ENGINE.run(job_of(project), "train-preliminary")
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    # the killed run's lock is gone with it, and its epochs are not lost
    assert list((tmp_path / "run").glob("train-preliminary/*.partial/training/checkpoints/*"))


def _wait_for(condition: object, seconds: float = 90) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose model passed its gate; tests work on copies."""
    project = make_project(tmp_path_factory.mktemp("judged"))
    project.change_spec(training={"epochs": 1, "preliminary_epochs": 1})
    project.change_spec(filter={"min_agreement": 0.0}, gate={"min_overall_accuracy": 0.0})
    for name in ("label", "train-preliminary", "filter", "train", "prune", "assess", "gate"):
        ENGINE.run(job_of(project), name)
    return project


@pytest.fixture
def passed(judged: Project, tmp_path: Path) -> Project:
    shutil.copytree(judged.root, tmp_path / "copy", symlinks=True)
    return Project(tmp_path / "copy", judged.truth_HW, judged.image_CHW)


def test_a_model_exchanged_after_its_gate_is_not_exported(passed: Project) -> None:
    """Even a whole bundle, with digests that fit, is not the one that was judged."""
    job = job_of(passed)
    other = job.output(ENGINE.run(job, "train-preliminary"), "model")
    trained = job.output(ENGINE.run(job, "train"), "model")
    model, info = load_bundle(other)
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    save_bundle(trained, model, info)
    with pytest.raises(TerrafineError, match="not the model that the gate judged"):
        ENGINE.run(job, "export")
    assert not leftovers(passed)


@pytest.mark.parametrize("edit", ["", "{", '{"passed": true}'])
def test_an_edited_verdict_promotes_nothing(passed: Project, edit: str) -> None:
    job = job_of(passed)
    job.output(ENGINE.run(job, "gate"), "decision").write_text(edit)
    with pytest.raises(TerrafineError, match=r"decision\.json: cannot be read back"):
        ENGINE.run(job, "export")


def test_a_verdict_turned_by_hand_promotes_nothing(judged: Project, tmp_path: Path) -> None:
    shutil.copytree(judged.root, tmp_path / "copy", symlinks=True)
    refused = Project(tmp_path / "copy", judged.truth_HW, judged.image_CHW)
    refused.change_spec(gate={"min_samples": 10**9})
    job = job_of(refused)
    decision = job.output(ENGINE.run(job, "gate"), "decision")
    decision.write_text(decision.read_text().replace('"passed": false', '"passed": true', 1))
    with pytest.raises(TerrafineError, match="cannot be read back"):
        ENGINE.run(job, "export")
    # every rule turned as well, so that the verdict agrees with itself
    decision.write_text(decision.read_text().replace('"passed": false', '"passed": true'))
    with pytest.raises(TerrafineError, match=r"decision\.json: says the opposite .* \(refuse\)"):
        ENGINE.run(job, "export")


def test_the_report_rings_its_own_network_among_those_that_it_was_chosen_from(
    passed: Project,
) -> None:
    own = str(ENGINE.run(job_of(passed), "assess").metrics["model"])
    place = Place(
        network="whole", engine="onnx", threads=2, seconds_per_megapixel=2.0,
        overall_accuracy=Figure(value=0.9), over_first=None, parameters=9, macs_per_pixel=9,
        models=("another",),
    )  # fmt: skip
    pruned = place.model_copy(update={"network": "pruned", "models": (own,)})
    found = Front(name="s", first="whole", statement="", within=0.0, places=(place, pruned))
    front = passed.root / "front.json"
    front.write_text(found.model_dump_json())
    passed.change_spec(publish={"front": "front.json"})
    job = job_of(passed)
    page = job.output(ENGINE.run(job, "refuse"), "report").read_text()
    assert "Accuracy against speed" in page
    assert page.count('class="ring"') == 1
    front.write_text('{"name": "s"}')
    with pytest.raises(StageError, match=r"publish\.front .*front\.json: not the front\.json of"):
        ENGINE.run(job, "refuse")
    front.unlink()
    with pytest.raises(StageError, match=r"front\.json"):
        ENGINE.run(job, "refuse")
    assert not leftovers(passed)


def test_two_utm_zones_are_two_groups_and_two_reports(passed: Project) -> None:
    """A second scene in another zone, which neither product nor reference covers, is mapped too."""
    write_raster(passed.root / "east.tif", passed.image_CHW, nodata=0, crs="EPSG:32651")
    passed.change_spec(
        imagery={
            "scenes": [
                {"name": "scene", "files": ["scene.tif"]},
                {"name": "east", "files": ["east.tif"]},
            ]
        }
    )
    job = job_of(passed)
    for name in ENGINE.names(job.spec):
        if name != "refuse":
            ENGINE.run(job, name)
    store = open_map(job.workdir / "map.icechunk")
    assert store.zones() == ("epsg32650", "epsg32651")
    published = ENGINE.run(job, "publish")
    folder = job.output(published, "report").parents[1]
    for zone, scene in (("epsg32650", "scene.tif"), ("epsg32651", "east.tif")):
        assert (folder / zone / "report.html").stat().st_size > 10_000
        with (
            rasterio.open(folder / zone / "landcover.tif") as landcover,
            rasterio.open(passed.root / scene) as image,
        ):
            assert (landcover.crs, landcover.transform) == (image.crs, image.transform)
        window = store.window(zone)
        assert set(np.unique(store.read(zone, window, "source"))) <= {0, 1, 2, 65535}
    row, col = store.grid("epsg32651").pixel_of(499_410.0 + 300, 4_400_016.0 - 300)
    assert store.explain("epsg32651", row, col).scene == "east"


def test_a_training_whose_manifest_cannot_be_written_is_not_lost(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.change_spec(model={"arch": "unet_w4"})
    job = job_of(project)
    ENGINE.run(job, "label")
    write = engine._write_text

    def full(path: Path, text: str) -> None:
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(engine, "_write_text", full)
    with pytest.raises(OSError, match="No space left"):
        ENGINE.run(job, "train-preliminary")
    monkeypatch.undo()
    folder = next(job.workdir.glob("train-preliminary/*.partial/training"))
    trained = sorted(folder.rglob("*.pt"))
    assert trained
    result: list[list[Path]] = []

    def watched(task: TrainingTask) -> TrainingResult:
        found = fit(task)
        result.append(sorted(folder.rglob("*.pt")))
        return found

    manifest = ENGINE.run(replace(job, trainer=watched), "train-preliminary")
    assert result == [trained], "no checkpoint came after those that were there"
    assert not (job.output(manifest, "model").parent / "training").exists()
