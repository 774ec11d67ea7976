"""The command line as a user meets it: help, JSON, exit codes, one sentence per error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas
import jsonschema
import numpy as np
import pytest
import yaml
from sklearn import metrics
from typer.testing import CliRunner

from terrafine.cli.main import app
from tests.commands import called, started
from tests.scenes import CRS, TRANSFORM, Project, write_raster

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "run", "demo", "label", "train", "filter", "prune", "assess", "gate", "export", "map",
    "publish",
    "compare", "spec check", "spec schema", "spec show", "model info", "legend list", "legend show",
    "dataset fetch", "dataset degrade", "landscape", "predict",
    "deploy", "promote", "rollback", "status", "watch", "serve",
)  # fmt: skip


def test_every_command_explains_itself() -> None:
    for command in COMMANDS:
        shown = CliRunner().invoke(app, [*command.split(), "--help"])
        assert shown.exit_code == 0, command
        assert "Usage:" in shown.output


def test_model_info_prints_the_papers_parameter_count() -> None:
    done = started(
        "model", "info", "--arch", "hrnet_w24", "--bands", "4", "--classes", "10", "--json"
    )
    found = json.loads(done.stdout)
    assert found["parameters"] == 16_812_946
    assert found["receptive_field"] == 1395
    assert round(found["macs_per_pixel"], -3) == 427_000


def test_a_typo_in_a_spec_gets_the_right_key(project: Project) -> None:
    project.change_spec(chips={"sise": 32})
    done = started("spec", "check", project.spec)
    assert done.returncode == 1
    assert "spec.yaml: unknown key 'chips.sise' (did you mean 'size'?)" in done.stderr
    assert "Traceback" not in done.stderr


def test_spec_check_finds_the_missing_file(project: Project) -> None:
    assert called("spec", "check", project.spec).returncode == 0
    (project.root / "product.tif").unlink()
    done = called("spec", "check", project.spec)
    assert done.returncode == 1
    assert "there is no product.tif" in done.stderr
    assert not (project.root / "runs").exists()


def test_the_schema_accepts_the_examples_and_refuses_a_typo() -> None:
    schema = json.loads(called("spec", "schema").stdout)
    for example in (ROOT / "examples").glob("*.yaml"):
        spec = yaml.safe_load(example.read_text())
        jsonschema.validate(spec, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**spec, "trainin": {}}, schema)


def test_a_dry_run_says_what_is_to_do_and_does_nothing(project: Project) -> None:
    done = called("run", project.spec, "--workdir", project.root / "run", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert set(plan["done"].values()) == {False}
    assert not list((project.root / "run").glob("label*"))


def test_paths_cannot_leave_the_data_root(project: Project) -> None:
    project.change_spec(labels={"file": "../product.tif"})
    done = called("label", project.spec)
    assert done.returncode == 1
    assert "leaves the data root" in done.stderr


def test_the_data_root_comes_from_option_or_environment(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    spec = shutil.move(project.spec, elsewhere / "spec.yaml")
    assert called("spec", "check", spec).returncode == 1
    assert called("spec", "check", spec, "--data", project.root).returncode == 0
    monkeypatch.setenv("TERRAFINE_DATA", str(project.root))
    assert called("spec", "check", spec).returncode == 0


def test_a_link_cannot_leave_the_data_root(tmp_path: Path, project: Project) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "scene.tif").symlink_to(project.root / "scene.tif")
    done = called("label", project.spec, "--data", inside, "--workdir", tmp_path / "run")
    assert done.returncode == 1
    assert "leads out of the data root" in done.stderr


@pytest.fixture
def class_map(tmp_path: Path) -> tuple[Path, np.ndarray]:
    codes = np.random.default_rng(0).integers(1, 8, (60, 80)).astype(np.uint8)
    write_raster(tmp_path / "map.tif", codes, nodata=255)
    return tmp_path / "map.tif", codes


def test_assess_agrees_with_scikit_learn_on_a_raster(
    class_map: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, codes = class_map
    rng = np.random.default_rng(1)
    reference = np.where(rng.random(codes.shape) < 0.7, codes, rng.integers(1, 8, codes.shape))
    write_raster(tmp_path / "reference.tif", reference.astype(np.uint8), nodata=0)
    done = called(
        "assess", "--map", path, "--reference", tmp_path / "reference.tif", "--unit", "16", "--json"
    )
    found = json.loads(done.stdout)
    y_true, y_pred = reference.ravel(), codes.ravel()
    labels = list(range(1, 8))
    expected = metrics.confusion_matrix(y_true, y_pred, labels=labels).T
    np.testing.assert_array_equal(found["matrix"], expected)
    for name, value in (
        ("overall_accuracy", metrics.accuracy_score(y_true, y_pred)),
        ("kappa", metrics.cohen_kappa_score(y_true, y_pred)),
        ("mean_f1", metrics.f1_score(y_true, y_pred, average="macro")),
        ("mean_iou", metrics.jaccard_score(y_true, y_pred, average="macro")),
    ):
        assert found[name]["value"] == pytest.approx(value, abs=1e-12)
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]


@pytest.mark.parametrize("crs", [CRS, "EPSG:4326", "EPSG:3857"])
def test_points_in_any_crs_meet_the_pixel_they_lie_in(
    class_map: tuple[Path, np.ndarray], tmp_path: Path, crs: str
) -> None:
    path, codes = class_map
    rng = np.random.default_rng(2)
    rows, cols = rng.integers(0, 60, 200), rng.integers(0, 80, 200)
    x, y = TRANSFORM @ (cols + 0.5, rows + 0.5)
    points = geopandas.GeoDataFrame(
        {"class": codes[rows, cols].astype(int)}, geometry=geopandas.points_from_xy(x, y), crs=CRS
    ).to_crs(crs)
    points.to_file(tmp_path / "points.gpkg")
    done = called("assess", "--map", path, "--reference", tmp_path / "points.gpkg", "--json")
    found = json.loads(done.stdout)
    assert found["samples"] == 200
    assert found["overall_accuracy"]["value"] == 1


def test_assess_without_overlap_says_so(
    class_map: tuple[Path, np.ndarray], tmp_path: Path, project: Project
) -> None:
    path, codes = class_map
    write_raster(tmp_path / "far.tif", codes, nodata=0, transform=project.elsewhere)
    done = called("assess", "--map", path, "--reference", tmp_path / "far.tif")
    assert done.returncode == 1
    assert "no reference class lies on" in done.stderr
