"""New scenes: only the shards that they can change are mapped again, as in a map from nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import MapStoreError
from terrafine.export import Release, read_release
from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import (
    Base,
    MapOutcome,
    MapReader,
    MapStore,
    MapWatch,
    Origin,
    ShardReceipt,
    ShardRunner,
    map_all,
    open_map,
)
from terrafine.mapping.run import WriteShard
from terrafine.mapping.write import ShardKey
from terrafine.publish import write_overviews
from terrafine.spec import MappingSpec
from terrafine.stages import Job
from terrafine.stages.map import map_place, map_scenes, open_inputs
from terrafine.stages.update import update_map
from tests.imagery import ArrayImagery, QuickPredictor, small_spec, smooth
from tests.scenes import TRANSFORM, Project, write_raster

ZONE = "epsg32650"
SPEC = small_spec()
OLD = Window(-310, 75, 330, 400)
# 36 pixels from a shard that sees it only by a CLAHE block (32) and the halo (8) beyond
NEW = Window(-150, 292, 40, 20)


def scene(window: Window, seed: int) -> tuple[Window, np.ndarray]:
    return window, smooth(np.random.default_rng(seed), window.height, window.width)


BEFORE = ArrayImagery([scene(OLD, 0)])
ADDED = ArrayImagery([scene(NEW, 1)])
# on top, so that the number of the old one changes
AFTER = ArrayImagery([*ADDED.images, *BEFORE.images])


def map_into(
    path: Path,
    imagery: ArrayImagery,
    scenes: Sequence[str],
    *,
    base: Base | None = None,
    asked: list[ShardKey] | None = None,
    **more: object,
) -> MapOutcome:
    def watched(shards: Sequence[ShardKey], write: WriteShard) -> Iterator[ShardReceipt]:
        for key in shards:
            if asked is not None:
                asked.append(key)
            yield write(key)

    options: dict[str, object] = {
        "spec": SPEC, "model_digest": "m", "legend": SEVEN, "spec_digest": "+".join(scenes), **more
    }  # fmt: skip
    return map_all(
        path,
        {ZONE: imagery},
        lambda: QuickPredictor(SPEC.window),
        scenes=scenes,
        run=watched,
        base=base,
        **options,
    )


@pytest.fixture(scope="module")
def from_nothing(tmp_path_factory: pytest.TempPathFactory) -> MapStore:
    path = tmp_path_factory.mktemp("nothing") / "map"
    done = map_into(path, AFTER, ["new", "old"])
    store = MapStore(path)
    store.release("all", done.run)
    return store


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "map"
    done = map_into(path, BEFORE, ["old"])
    store = MapStore(path)
    write_overviews(store, done.run)
    store.release("v1", done.run)
    return path


@pytest.fixture
def store(tmp_path: Path, released: Path) -> MapStore:
    return MapStore(Path(shutil.copytree(released, tmp_path / "map")))


def update(store: MapStore, name: str = "v2", **more: object) -> MapOutcome:
    base = Base("v1", {ZONE: ADDED})
    done = map_into(store.path, AFTER, ["new", "old"], base=base, **more)
    write_overviews(store, done.run)
    store.release(name, done.run)
    return done


def differing(store: MapStore, other: MapStore, ref: str) -> set[Window]:
    """Shards of the current releases that are not the same."""
    return {
        shard
        for shard in store.written(ZONE)
        if (store.read(ZONE, shard, ref=ref) != other.read(ZONE, shard)).any()
    }


def chunks(store: MapStore) -> int:
    return sum(1 for p in (store.path / "chunks").rglob("*") if p.is_file())


def test_the_update_is_the_map_of_all_scenes_and_maps_what_they_change_only(store, from_nothing):
    asked: list[ShardKey] = []
    changed = differing(store, from_nothing, "v1")
    before = chunks(store)
    done = update(store, asked=asked)
    assert {window for _, window in asked} >= changed
    assert len(asked) == done.shards == done.computed < len(store.written(ZONE)) / 2
    assert any(NEW.intersection(window) is None for window in changed), (
        "windows and CLAHE blocks carry a new scene into shards that it does not touch"
    )
    for array in ("landcover", "confidence"):
        np.testing.assert_array_equal(
            store.read(ZONE, store.window(ZONE), array),
            from_nothing.read(ZONE, store.window(ZONE), array),
        )
    np.testing.assert_array_equal(
        store.overview(ZONE, 2)[0],
        _overview(from_nothing),
    )
    # three arrays, and at most the chunks of the overviews and of what describes the run
    assert chunks(store) - before <= 3 * len(asked) + 2 * len(store.overviews(ZONE))


def _overview(store: MapStore) -> np.ndarray:
    run = store.runs()[0]
    write_overviews(store, run)
    return store.overview(ZONE, 2, run)[0]


def test_the_release_that_it_started_from_stays_as_it_was(store):
    before = store.read(ZONE, store.window(ZONE), ref="v1")
    update(store)
    again = open_map(store.path)
    np.testing.assert_array_equal(again.read(ZONE, store.window(ZONE), ref="v1"), before)
    assert [r.name for r in again.releases()] == ["v1", "v2"]
    assert again.provenance("v2").base == "v1"
    assert again.provenance("v1").base is None


def test_shards_that_are_not_mapped_again_are_shared_and_not_copied(store):
    done = update(store)
    since = store._repository.diff(
        from_snapshot_id=store.snapshot("v1"), to_snapshot_id=store.snapshot("v2")
    )
    assert len(since.updated_chunks[f"/{ZONE}/landcover"]) == done.shards
    assert store.done(done.run) == {
        (ZONE, store.layout.zones[ZONE].shard_at(*place))
        for place in since.updated_chunks[f"/{ZONE}/landcover"]
    }


def test_every_pixel_still_names_its_scene_and_the_run_that_mapped_it(store, from_nothing):
    """The new scene is the first of the list now, the old one's pixels were counted before it."""
    first = store.provenance("v1").run
    done = update(store)
    assert store.provenance("v2").scenes == ("old", "new")
    inside = store.explain(ZONE, NEW.row + 20, NEW.col + 10)
    assert (inside.scene, inside.record.run) == ("new", done.run)
    far = store.explain(ZONE, OLD.row + 5, OLD.col + 5)
    assert (far.scene, far.record.run) == ("old", first)
    names = np.array(["", "old", "new"])
    others = np.array(["", "new", "old"])
    extent = store.window(ZONE)
    found = store.read(ZONE, extent, "source")
    expected = from_nothing.read(ZONE, extent, "source")
    mapped = expected != 65535
    np.testing.assert_array_equal(mapped, found != 65535)
    np.testing.assert_array_equal(names[found[mapped]], others[expected[mapped]])


def test_an_update_that_was_killed_goes_on_and_cannot_be_released_before(store):
    def dying(shards: Sequence[ShardKey], write: WriteShard) -> Iterator[ShardReceipt]:
        for number, key in enumerate(shards):
            if number == SPEC.wave:
                raise KeyboardInterrupt
            yield write(key)

    with pytest.raises(KeyboardInterrupt):
        map_all(
            store.path,
            {ZONE: AFTER},
            lambda: QuickPredictor(SPEC.window),
            spec=SPEC,
            legend=SEVEN,
            scenes=["new", "old"],
            model_digest="m",
            spec_digest="new+old",
            run=dying,
            base=Base("v1", {ZONE: ADDED}),
        )
    (run,) = set(store.runs()) - {store.provenance("v1").run}
    with pytest.raises(MapStoreError, match="lacks"):
        store.release("v2", run)
    done = update(store)
    assert done.run == run
    assert done.resumed == SPEC.wave


def test_an_update_of_an_update_counts_on(store):
    update(store)
    more = scene(Window(-300, 80, 30, 30), 2)
    newest = ArrayImagery([more, *AFTER.images])
    base = Base("v2", {ZONE: ArrayImagery([more])})
    done = map_into(store.path, newest, ["third", "new", "old"], base=base)
    store.release("v3", done.run)
    assert store.provenance("v3").scenes == ("old", "new", "third")
    assert store.explain(ZONE, -290, 90).scene == "third"
    assert store.explain(ZONE, NEW.row + 20, NEW.col + 10).scene == "new"


def test_an_update_that_would_leave_a_seam_or_does_not_fit_is_refused(store):
    before = store.runs()
    base = Base("v1", {ZONE: ADDED})
    blunt = small_spec(enhance={"block": 32, "threshold": 141})
    outside = ArrayImagery([*BEFORE.images, scene(Window(300, 75, 64, 64), 3)])
    openvino = small_spec(predictor="openvino")
    for reason, imagery, start, more in (
        ("model m, not n", AFTER, base, {"model_digest": "n"}),
        ("map.enhance", AFTER, base, {"spec": blunt}),
        ("map.predictor onnx, not openvino", AFTER, base, {"spec": openvino}),
        ("4 shards beyond them, the first at row 256, column 64", outside, base, {}),
        ("there is nothing to map again", AFTER, Base("v1", {}), {}),
        ("no release 'v0'; releases: v1", AFTER, Base("v0", {ZONE: ADDED}), {}),
    ):
        with pytest.raises(MapStoreError, match=reason):
            map_into(store.path, imagery, ["new", "old"], base=start, **more)
    assert store.runs() == before


def test_an_update_with_another_setting_of_the_imagery_is_refused_by_its_key(store):
    def with_order(order: str | None) -> Origin:
        return Origin({"imagery.scale": 1.0, "imagery.catalogue.order": order})

    done = map_into(store.path, BEFORE, ["old"], spec_digest="s", origin=with_order("newest"))
    store.release("v2", done.run)
    more = {"imagery": AFTER, "scenes": ["new", "old"], "base": Base("v2", {ZONE: ADDED})}
    for other in ("oldest", None):
        with pytest.raises(
            MapStoreError, match=f"with imagery.catalogue.order newest, not {other}; .* leave seams"
        ):
            map_into(store.path, origin=with_order(other), **more)
    assert map_into(store.path, origin=with_order("newest"), **more).computed
    # what an older version did not keep cannot be held against anyone
    of_older = {**more, "base": Base("v1", {ZONE: ADDED})}
    assert map_into(store.path, origin=with_order("oldest"), **of_older).computed


def test_the_stamps_of_scenes_are_kept_also_where_the_imagery_has_them_no_more(store):
    done = map_into(store.path, BEFORE, ["old"], spec_digest="s", origin=Origin({}, {"old": "1"}))
    store.release("v2", done.run)
    base = Base("v2", {ZONE: ADDED})
    done = map_into(store.path, ADDED, ["new"], base=base, origin=Origin({}, {"new": "2"}))
    assert store.stamps(done.run) == {"old": "1", "new": "2"}


# the command: a project on disk, a real model, whose release lies in the work directory


@pytest.fixture
def mapped(project: Project, tmp_path: Path, releases: tuple[Release, Release]) -> Job:
    """A released map of one scene, and a spec that has another one on top."""
    project.change_spec(map={"core": 32, "halo": 16, "shard": 64, "enhance": {"block": 32}})
    workdir = tmp_path / "run"
    job = Job.open(project.spec, data=None, workdir=workdir)
    model = read_release(
        Path(shutil.copytree(releases[0].folder, workdir / "export" / "0123" / "release"))
    )
    opened = open_inputs(job, model, model.graph("fp32"), model.folder)
    done = map_scenes(job, *opened, graph_digest=model.info.graphs["fp32"].sha256)
    MapStore(map_place(job)).release("v1", done.run)
    patch = project.image_CHW[:, 150:180, 150:180][:, ::-1]
    write_raster(
        project.root / "patch.tif",
        patch,
        nodata=0,
        transform=TRANSFORM @ Affine.translation(150, 150),
    )
    old = {"name": "scene", "files": ["scene.tif"]}
    new = {"name": "patch", "files": ["patch.tif"]}
    project.change_spec(imagery={"scenes": [new, old]})
    return Job.open(project.spec, data=None, workdir=workdir)


def command(job: Job, project: Project, *words: str, verb: str = "update") -> Any:
    options = [str(project.spec), "--workdir", str(job.workdir), *words]
    return CliRunner().invoke(app, ["map", verb, *options])


def test_the_command_maps_a_new_scene_and_releases_what_comes_of_it(mapped, project):
    done = command(mapped, project, "--base", "v1", "--name", "v2", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    store = open_map(map_place(mapped))
    assert 0 < found["shards"] < len(store.written(ZONE))
    assert [r.name for r in store.releases() if r.current] == ["v2"]
    scene = Window(*project_pixel(store, 150, 150), 30, 30)
    assert set(np.unique(store.read(ZONE, scene, "source", "v2"))) == {2}
    assert set(np.unique(store.read(ZONE, scene, "source", "v1"))) == {1}
    again = command(mapped, project, "--base", "v1", "--json")
    assert json.loads(again.stdout)["run"] == found["run"]
    assert json.loads(again.stdout)["computed"] == 0


def test_without_new_scenes_or_without_their_model_nothing_is_mapped(mapped, project, releases):
    refused = command(mapped, project, "--base", "v9")
    assert "no release 'v9'; releases: v1" in str(refused.exception)
    refused = command(mapped, project, "--base", "v1", "--model", str(releases[1].folder))
    assert "an update would leave seams" in str(refused.exception)
    shutil.rmtree(mapped.workdir / "export")
    refused = command(mapped, project, "--base", "v1")
    assert "name its folder (--model)" in str(refused.exception)
    assert len(open_map(map_place(mapped)).runs()) == 1


def test_an_update_with_another_engine_is_refused(mapped, project):
    pytest.importorskip("openvino")
    project.change_spec(map={"predictor": "openvino"})
    refused = command(mapped, project, "--base", "v1")
    assert "map.predictor onnx, not openvino; an update would leave" in str(refused.exception)
    assert len(open_map(map_place(mapped)).runs()) == 1


def test_an_update_with_another_scale_is_refused(mapped, project):
    project.change_spec(imagery={"scale": 2.0})
    refused = command(mapped, project, "--base", "v1")
    assert "imagery.scale 1.0, not 2.0; an update would leave seams" in str(refused.exception)
    assert len(open_map(map_place(mapped)).runs()) == 1


def test_a_scene_whose_file_was_written_anew_counts_as_new(mapped, project):
    project.change_spec(imagery={"scenes": [{"name": "scene", "files": ["scene.tif"]}]})
    image_CHW = project.image_CHW
    write_raster(project.root / "scene.tif", image_CHW, nodata=0)
    refused = command(mapped, project, "--base", "v1")
    assert "no scene is new since release 'v1'" in str(refused.exception), "the same bytes"
    write_raster(project.root / "scene.tif", image_CHW[:, ::-1], nodata=0)
    done = command(mapped, project, "--base", "v1", "--name", "v2", "--json")
    store = open_map(map_place(mapped))
    assert json.loads(done.stdout)["shards"] == len(store.written(ZONE))
    assert store.provenance("v2").scenes == ("scene",)
    refused = command(mapped, project, "--base", "v2")
    assert "no scene is new since release 'v2'" in str(refused.exception)


def test_an_updated_release_is_verified_and_every_time_other_shards_are_looked_at(mapped, project):
    # as a map with a champion has its model
    (mapped.workdir / "export").rename(mapped.workdir / "adopt")
    done = command(mapped, project, "--base", "v1", "--name", "v2", "--json")
    shards = json.loads(done.stdout)["shards"]
    looked = [
        command(mapped, project, "--release", "v2", "--shards", "99", "--json", verb="verify")
        for _ in range(2)
    ]
    for each in looked:
        assert each.exit_code == 0, each.output
        found = json.loads(each.stdout)
        assert len({(s["row"], s["col"]) for s in found}) == len(found) == shards
        assert not any(s["differs"] or s["damaged"] for s in found)
    first, second = (each.stderr.partition("--seed ")[2].split()[0] for each in looked)
    assert first != second
    assert looked[0].stdout != looked[1].stdout, "in another order"
    words = ("--release", "v2", "--shards", "99", "--json", "--seed", first)
    assert command(mapped, project, *words, verb="verify").stdout == looked[0].stdout
    refused = command(mapped, project, "--release", "v1", verb="verify")
    assert "release 'v1' was mapped from another spec" in str(refused.exception)


def test_an_update_that_was_begun_is_resumed_and_none_is_begun(mapped, project):
    words = ("--base", "v1", "--json")
    refused = command(mapped, project, *words, verb="resume")
    assert "nothing to resume: the update of v1 to this spec was not begun" in str(
        refused.exception
    )

    def dying(spec: MappingSpec, watch: MapWatch) -> ShardRunner:
        def run(shards: Sequence[ShardKey], write: WriteShard) -> Iterator[ShardReceipt]:
            yield write(shards[0])
            raise KeyboardInterrupt

        return run

    with pytest.raises(KeyboardInterrupt):
        update_map(replace(mapped, map_runner=dying), "v1")
    done = command(mapped, project, *words, verb="resume")
    found = json.loads(done.stdout)
    assert found["computed"] == found["shards"] - 1
    refused = command(mapped, project, *words, verb="resume")
    assert "the update of v1 to this spec is finished" in str(refused.exception)


def project_pixel(store: MapReader, row: int, col: int) -> tuple[int, int]:
    """Global number of a pixel of the project's scene."""
    return store.grid(ZONE).pixel_of(*(TRANSFORM @ (col + 0.5, row + 0.5)))
