"""A spec that names a champion: a map and its release from a released model, nothing trained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import rasterio
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import StageError, TerrafineError
from terrafine.export import Release, fetch_release, read_release
from terrafine.mapping import open_map, release_record
from terrafine.spec import ServeSpec
from terrafine.stages import ENGINE, Job, adopt
from terrafine.stages.deploy import DEPLOY
from terrafine.stages.map import require_begun, stage_inputs
from terrafine.storage import Storage
from tests.buckets import s3_bucket
from tests.scenes import Project, make_project

REFERENCE = {"file": "reference.tif", "crosswalk": "seven"}


@pytest.fixture
def project(tmp_path: Path, releases: tuple[Release, Release]) -> Project:
    """A scene and a spec that maps it with a released model, and has all of a training left."""
    made = make_project(tmp_path)
    shutil.copytree(releases[0].folder, made.root / "champion")
    # windows of 64 pixels, as the model takes
    made.change_spec(champion="champion", map={"core": 32, "halo": 16})
    return made


def job_of(project: Project) -> Job:
    return Job.open(project.spec, data=None, workdir=project.root / "run")


def terrafine(project: Project, *arguments: str) -> str:
    """The output of a command on the project's spec and work directory."""
    where = [str(project.spec), "--workdir", str(project.root / "run"), "--json"]
    done = CliRunner().invoke(app, [*arguments, *where])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_champion_maps_and_nothing_is_trained(
    project: Project, releases: tuple[Release, Release]
) -> None:
    terrafine(project, "map")
    job = job_of(project)
    assert {p.name for p in job.workdir.iterdir() if p.is_dir()} == {"adopt", "map", "map.icechunk"}
    terrafine(project, "publish")
    published = ENGINE.find(job, "publish")
    assert published is not None
    assert set(published.inputs) == {"adopt", "map"}
    store = open_map(job.workdir / "map.icechunk")
    (release,) = store.releases()
    assert release.name == published.metrics["release"]
    assert release_record(store, release.name).model == releases[0].info.model
    with rasterio.open(job.output(published, "geotiff")) as landcover:
        codes = landcover.read(1)
    assert ((codes == 0) == (project.image_CHW == 0).any(axis=0)).all()
    page = job.output(published, "report").read_text()
    assert "The gate promoted this model" in page, "the verdict the champion was released with"
    assert "No accuracy was measured" in page, "the reference lies where someone may have trained"
    assert not list(job.workdir.glob("publish/latest/accuracy.json"))
    again = json.loads(terrafine(project, "map", "verify"))
    assert [shard["differs"] for shard in again] == [[]] * len(again)


def test_a_reference_that_no_model_was_trained_on_measures_the_map(project: Project) -> None:
    reference = {"reference": {**REFERENCE, "region": "all"}}
    project.change_spec(assess=reference, publish={"release": "2026.1"})
    job = job_of(project)
    for name in ENGINE.names(job.spec):
        ENGINE.run(job, name)
    folder = job.workdir / "publish/latest"
    assert json.loads((folder / "accuracy.json").read_text())["samples"] > 30_000
    assert "only where map and product differ" in (folder / "report.html").read_text()
    assert [r.name for r in open_map(job.workdir / "map.icechunk").releases()] == ["2026.1"]


def test_neither_labels_nor_reference_are_needed(project: Project) -> None:
    project.change_spec(labels=None, assess=None)
    for name in ("product.tif", "reference.tif"):
        (project.root / name).unlink()
    assert set(ENGINE.digests(job_of(project), "publish")) == {"adopt", "map", "publish"}


def test_a_champion_that_changes_afterwards_changes_no_map(
    project: Project, releases: tuple[Release, Release]
) -> None:
    job = job_of(project)
    before = ENGINE.run(job, "adopt")
    shutil.rmtree(project.root / "champion")
    shutil.copytree(releases[1].folder, project.root / "champion")
    after = ENGINE.run(job, "adopt")
    assert after.digest != before.digest, "another champion is another input"
    assert after.metrics["model"] == releases[1].info.model
    assert read_release(job.output(before, "release")).info == releases[0].info


def test_a_champion_that_changes_while_it_is_adopted_is_not_adopted(
    project: Project, releases: tuple[Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, champion = job_of(project), project.root / "champion"

    def changed(place: Storage, into: Path) -> Release:
        shutil.rmtree(champion)
        shutil.copytree(releases[1].folder, champion)
        return fetch_release(place, into)

    monkeypatch.setattr(adopt, "fetch_release", changed)
    with pytest.raises(StageError, match=r"<champion> .*changed while stage adopt worked"):
        ENGINE.run(job, "adopt")
    assert not list(job.workdir.glob("adopt/*/manifest.json"))
    assert ENGINE.run(job, "adopt").metrics["model"] == releases[1].info.model


def test_a_release_that_another_run_left_in_its_place_is_neither_mapped_nor_deployed(
    project: Project, releases: tuple[Release, Release], tmp_path: Path
) -> None:
    """Every file of it fits its own description; only the manifest tells."""
    job = job_of(project)
    made = ENGINE.run(job, "adopt")
    place = job.output(made, "release")
    shutil.rmtree(place)
    shutil.copytree(releases[1].folder, place)
    # the map's own graph may still be the one that was gated
    exact = releases[0].info.graphs["fp32"].file
    shutil.copy2(releases[0].folder / exact, job.workdir / exact)
    made = made.model_copy(update={"outputs": {**made.outputs, "graph": exact}})
    says = (
        rf"holds release {releases[1].digest[:12]} \(run test-1\), but stage adopt left "
        rf"{releases[0].digest[:12]}, which its gate vouches for; delete .*adopt"
    )
    with pytest.raises(StageError, match=says):
        stage_inputs(job, {"adopt": made})
    with pytest.raises(StageError, match=says):
        require_begun(job, {"adopt": made})
    deployed: list[Release] = []

    def deployer(release: Release, serve: ServeSpec) -> dict[str, int]:
        deployed.append(release)
        return {}

    project.change_spec(serve={"server": "grpc://a:1", "repository": str(tmp_path / "models")})
    job = replace(job_of(project), deployer=deployer)
    with pytest.raises(StageError, match=says):
        DEPLOY.work(job, tmp_path, {"export": made})
    assert not deployed
    command = ["deploy", str(project.spec), "--workdir", str(job.workdir)]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, StageError)
    assert re.search(says, str(done.exception))


def test_what_a_champion_leaves_nothing_to_do_says_so(project: Project) -> None:
    with pytest.raises(TerrafineError, match=r"stage train has nothing to do: .*`champion`"):
        ENGINE.run(job_of(project), "train")
    project.change_spec(champion=None)
    with pytest.raises(TerrafineError, match="needs a spec that names a `champion`"):
        ENGINE.run(job_of(project), "adopt")


def _cut(project: Project) -> None:
    graph = project.root / "champion/model.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: shutil.rmtree(p.root / "champion"), "champion: no model release here"),
        (_cut, "was damaged or edited since the release was made"),
        (lambda p: (p.root / "champion/canary.safetensors").unlink(), "is missing"),
        (lambda p: p.change_spec(map={"halo": 32}), "takes map.core .* 64, .* spec says 96"),
        (lambda p: p.change_spec(imagery={"scale": 0.1}), "takes imagery.scale 1, .* says 0.1"),
        (
            lambda p: p.change_spec(imagery={"bands": ["nir", "red", "green", "blue"]}),
            "takes imagery.bands red, green, blue, nir",
        ),
        (lambda p: p.change_spec(legend="fbp"), "takes legend seven .* says fbp"),
    ],
    ids=["no folder", "cut graph", "no canary", "window", "scale", "bands", "legend"],
)
def test_a_champion_that_does_not_fit_ends_in_one_sentence(
    project: Project, spoil: Callable[[Project], None], says: str
) -> None:
    spoil(project)
    with pytest.raises(TerrafineError, match=says) as caught:
        ENGINE.run(job_of(project), "adopt")
    assert "\n" not in str(caught.value)
    assert not list((project.root / "run").glob("adopt/*/manifest.json"))
    assert not list((project.root / "run").glob("adopt/*.partial"))


def test_a_champion_in_a_bucket_is_fetched(project: Project) -> None:
    with s3_bucket() as bucket:
        place = Storage.at(f"{bucket}/releases/2026")
        for file in (project.root / "champion").iterdir():
            place.write(file.name, file.read_bytes())
        project.change_spec(champion=str(place))
        job = job_of(project)
        adopted = ENGINE.run(job, "adopt")
        again = ENGINE.run(job, "adopt")
    assert again == adopted
    assert read_release(job.output(adopted, "release")).info.model == adopted.metrics["model"]
