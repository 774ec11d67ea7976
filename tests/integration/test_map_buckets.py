"""National maps in a bucket: every command there, and a server that answers 503 and is slow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import icechunk
import numpy as np
import pytest
import rasterio
from affine import Affine
from typer.testing import CliRunner, Result

from terrafine.cli.main import app
from terrafine.errors import MapStoreError
from terrafine.export import Release
from terrafine.mapping import MapOutcome, MapStore, in_sequence, run_states
from terrafine.mapping.place import settings
from terrafine.stages import ENGINE, Job
from tests.buckets import Weather, s3_bucket, s3_bucket_in
from tests.imagery import map_two_scenes
from tests.scenes import TRANSFORM, Project, make_project, write_raster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ARRAYS = ("landcover", "confidence", "source")


def arrays(place: Path | str, run: str) -> dict[str, np.ndarray]:
    store = MapStore(place)
    (zone,) = store.zones()
    return {name: store.read(zone, store.window(zone), name, run) for name in ARRAYS}


def assert_same_map(place: Path | str, other: Path | str, outcome: MapOutcome) -> None:
    here, there = arrays(place, outcome.run), arrays(other, outcome.run)
    for name in ARRAYS:
        assert np.array_equal(here[name], there[name]), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed") / "map"
    map_two_scenes(place)
    return place


def test_a_map_goes_on_through_answers_of_503_and_slow_ones(undisturbed: Path) -> None:
    weather = Weather()
    with s3_bucket_in(weather) as bucket:
        weather.refused, weather.slow = 0.15, 0.1
        outcome = map_two_scenes(f"{bucket}/map")
        assert weather.happened["refused"] > 10
        assert weather.happened["slow"] > 10
        weather.refused = weather.slow = 0.0
        assert outcome.computed == outcome.shards
        assert_same_map(f"{bucket}/map", undisturbed, outcome)


def test_answers_that_are_lost_after_the_work_was_done_lose_no_shard(undisturbed: Path) -> None:
    """What is tried again finds itself in its way: a branch, a store half made, a commit."""
    weather = Weather()
    with s3_bucket_in(weather) as bucket:
        weather.unheard = 0.1
        outcome, sentences = None, list[str]()
        while outcome is None and len(sentences) < 30:
            try:
                outcome = map_two_scenes(f"{bucket}/map")
            except MapStoreError as error:
                sentences.append(str(error))
        assert weather.happened["unheard"] > 10
        weather.unheard = 0.0
        assert outcome is not None, sentences
        assert not any("\n" in sentence for sentence in sentences)
        assert_same_map(f"{bucket}/map", undisturbed, outcome)
        (state,) = run_states(MapStore(f"{bucket}/map"))
        assert state.done == state.planned == outcome.shards


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Icechunk asks a bucket four times, not ten: what follows is the same a minute earlier."""
    config = settings()
    config.storage = icechunk.StorageSettings(retries=icechunk.StorageRetriesSettings(max_tries=4))
    for module in ("place", "store"):
        monkeypatch.setattr(f"terrafine.mapping.{module}.settings", lambda: config)


def test_a_bucket_that_fails_for_good_stops_the_map_with_one_sentence_and_it_resumes(
    undisturbed: Path, impatient: None
) -> None:
    weather = Weather()
    with s3_bucket_in(weather) as bucket:

        def breaking(shards, write):
            for number, receipt in enumerate(in_sequence(shards, write)):
                if number == 7:
                    weather.refused = 1.0
                yield receipt

        with pytest.raises(MapStoreError, match=r"s3://.*map: the map store cannot be") as raised:
            map_two_scenes(f"{bucket}/map", run=breaking)
        assert "\n" not in str(raised.value)
        weather.refused = 0.0
        (state,) = run_states(MapStore(f"{bucket}/map"))
        assert 0 < state.done < state.planned, "what was committed can be read"
        outcome = map_two_scenes(f"{bucket}/map")
        assert outcome.resumed == state.done
        assert_same_map(f"{bucket}/map", undisturbed, outcome)


@pytest.fixture
def project(tmp_path: Path, champion_release: Release) -> Iterator[tuple[Project, str]]:
    """A scene, a model and a bucket for the map."""
    made = make_project(tmp_path)
    shutil.copytree(champion_release.folder, made.root / "champion")
    made.change_spec(champion="champion", labels=None, assess=None)
    with s3_bucket() as bucket:
        place = f"{bucket}/maps/generated"
        made.change_spec(map={"storage": place, "threads": 1})
        yield made, place


def terrafine_map(*arguments: object) -> Result:
    done = CliRunner().invoke(app, ["map", *map(str, arguments)])
    assert done.exit_code == 0, f"{arguments}: {done.output} {done.exception}"
    return done


def test_every_command_does_in_a_bucket_what_it_does_on_disk(
    project: tuple[Project, str], tmp_path: Path
) -> None:
    made, place = project
    here = (made.spec, "-w", made.root / "run")
    terrafine_map(*here)
    (state,) = json.loads(terrafine_map("status", place, "--json").stdout)["runs"]
    assert state["done"] == state["planned"] > 0
    checked = json.loads(terrafine_map("verify", *here, "--shards", 2, "--json").stdout)
    assert [shard["differs"] for shard in checked] == [[], []]
    assert "MB freed" in terrafine_map("gc", place).stdout

    job = Job.open(made.spec, data=None, workdir=made.root / "run")
    published = ENGINE.run(job, "publish")
    first = str(published.metrics["release"])
    with rasterio.open(job.output(published, "geotiff")) as landcover:
        codes = landcover.read(1)
    assert ((codes == 0) == (made.image_CHW == 0).any(axis=0)).all()
    assert "store" not in published.outputs, "it is not in the work directory"

    add_a_scene(made)
    update = ("update", *here, "--model", made.root / "champion", "--base", first)
    updated = json.loads(terrafine_map(*update, "--name", "later", "--json").stdout)
    assert 0 < updated["shards"] < state["planned"]
    listed = json.loads(terrafine_map("releases", place, "--json").stdout)
    assert {r["name"]: r["current"] for r in listed} == {first: False, "later": True}
    changed = json.loads(terrafine_map("diff", place, first, "later", "--json").stdout)
    pixels = np.array(changed["total"]["pixels"])
    assert pixels.sum() > np.trace(pixels), "the new scene shows something else"
    terrafine_map("rollback", place, first)
    assert [r.name for r in MapStore(place).releases() if r.current] == [first]
    terrafine_map("release", place, "again", "--run", state["run"])

    terrafine_map("export", place, "--release", "later", "--into", tmp_path / "cogs")
    assert list((tmp_path / "cogs").rglob("*.tif"))
    terrafine_map("export", place, "--format", "zarr", "--into", tmp_path / "zarr")
    assert list((tmp_path / "zarr").rglob("zarr.json"))


def add_a_scene(project: Project) -> None:
    """A corner of the scene, seen again when everything had another colour."""
    write_raster(
        project.root / "new.tif", project.image_CHW[:, :40, -50:][::-1], nodata=0,
        transform=TRANSFORM @ Affine.translation(project.image_CHW.shape[2] - 50, 0),
    )  # fmt: skip
    scenes = [{"name": "new", "files": ["new.tif"]}, {"name": "scene", "files": ["scene.tif"]}]
    project.change_spec(imagery={"scenes": scenes})
