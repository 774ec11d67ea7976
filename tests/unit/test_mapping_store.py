from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import icechunk
import numpy as np
import pytest
import zarr
from affine import Affine
from pyproj import CRS

from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import FBP, SEVEN
from terrafine.mapping import MapRun, MapStore, Plan, ShardResult, is_map_store, open_map
from tests.disks import small_disk
from tests.imagery import GRID
from tests.map_stores import ZONES, write_run

ZONE = "epsg32650"
EXTENT = Window(-128, 64, 128, 192)
SHARDS = tuple(EXTENT.tiles(64))
PLAN = Plan(ZONE, GRID, EXTENT, 64, SHARDS)
DIGESTS = {"model": "m" * 64, "spec": "s" * 64}


def shard_of(window: Window, code: int = 1, source: int = 1) -> ShardResult:
    shape = window.shape
    return ShardResult(
        window,
        np.full(shape, code, np.uint8),
        np.full(shape, 50 + code, np.uint8),
        np.full(shape, source, np.uint16),
    )


def start(store: MapStore, model: str = DIGESTS["model"]):
    return store.run(
        [PLAN], model=model, spec=DIGESTS["spec"], scenes=("north", "south"), mapping={"core": 32}
    )


def deliver(run: MapRun, result: ShardResult) -> bool:
    """As a worker writes a shard and the driver takes its receipt."""
    return run.accept(run.target.write(ZONE, result))


def write_all(store: MapStore, code: int, model: str = DIGESTS["model"]) -> str:
    with start(store, model) as run:
        for _, shard in run.todo():
            deliver(run, shard_of(shard, code))
        run.commit()
    return run.name


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> MapStore:
    return MapStore.create(tmp_path / "map", [PLAN], SEVEN)


# what is not written, what is not committed


def test_what_was_never_written_never_reads_as_a_class(store):
    everywhere = EXTENT.buffered(30)
    assert (store.read(ZONE, everywhere) == 255).all()
    assert (store.read(ZONE, everywhere, "confidence") == 255).all()
    assert (store.read(ZONE, everywhere, "source") == 65535).all()


def test_a_wave_is_invisible_until_it_is_committed_and_then_whole(store):
    with start(store) as run:
        deliver(run, shard_of(SHARDS[0]))
        deliver(run, shard_of(SHARDS[4], 2))
        assert (open_map(store.path).read(ZONE, EXTENT, ref=run.name) == 255).all()
        run.commit()
        written = open_map(store.path).read(ZONE, EXTENT, ref=run.name)
    assert set(np.unique(written[SHARDS[0].slices(EXTENT)])) == {1}
    assert set(np.unique(written[SHARDS[4].slices(EXTENT)])) == {2}
    assert (written == 255).sum() == 4 * 64 * 64
    assert (store.read(ZONE, EXTENT) == 255).all(), "main shows releases only"


def test_a_run_that_is_given_up_leaves_only_what_it_committed(store):

    def interrupted():
        with start(store) as run:
            deliver(run, shard_of(SHARDS[0]))
            run.commit()
            deliver(run, shard_of(SHARDS[1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    run = store.runs()[0]
    assert store.done(run) == {(ZONE, SHARDS[0])}
    with start(store) as again:
        assert again.name == run
        assert [shard for _, shard in again.todo()] == sorted(SHARDS[1:])


def test_a_zero_shard_is_written_and_not_left_as_unwritten(store):
    with start(store) as run:
        deliver(run, shard_of(SHARDS[0], code=0, source=0))
        run.commit()
    assert (store.read(ZONE, SHARDS[0], ref=run.name) == 0).all()


def test_another_model_or_spec_is_another_run_that_starts_empty(store):
    first = write_all(store, 1)
    with start(store, model="n" * 64) as run:
        assert run.name != first
        assert len(run.todo()) == len(SHARDS)
    assert store.runs() == tuple(sorted([first, run.name]))


# a pixel has one owner


@pytest.mark.parametrize(
    "window",
    [
        Window(-128, 64, 32, 32),
        Window(-120, 64, 64, 64),
        Window(-128, 64, 64, 128),
        Window(0, 64, 64, 64),
    ],
)
def test_a_region_that_is_not_one_whole_shard_is_refused_before_anything_is_written(store, window):
    with start(store) as run:
        deliver(run, shard_of(SHARDS[0]))
        run.commit()
        before = files(store.path)
        with pytest.raises(MapStoreError, match="nothing was written"):
            deliver(run, shard_of(window))
        assert files(store.path) == before
        run.commit()
    assert files(store.path) == before


def test_arrays_that_do_not_fill_the_shard_are_refused_before_anything_is_written(store):
    good = shard_of(SHARDS[0])
    wrong_shape = ShardResult(good.window, good.landcover[:32], good.confidence, good.source)
    wrong_type = ShardResult(
        good.window, good.landcover, good.confidence, good.source.astype(np.uint8)
    )
    with start(store) as run:
        before = files(store.path)
        for wrong, name in ((wrong_shape, "landcover"), (wrong_type, "source")):
            with pytest.raises(MapStoreError, match=f"{name} of the shard at row -128, column 64"):
                deliver(run, wrong)
        assert files(store.path) == before
        assert run.pending == 0


def test_a_shard_delivered_twice_is_written_once(store):
    with start(store) as run:
        assert deliver(run, shard_of(SHARDS[0]))
        assert not deliver(run, shard_of(SHARDS[0])), "in the same wave"
        run.commit()
        assert not deliver(run, shard_of(SHARDS[0])), "after the commit"
        run.commit()
    assert (store.read(ZONE, SHARDS[0], ref=run.name) == 1).all()


def test_a_shard_that_comes_out_otherwise_the_second_time_is_an_error(store):
    other = shard_of(SHARDS[0], 7)
    with start(store) as run:
        deliver(run, shard_of(SHARDS[0]))
        with pytest.raises(MapStoreError, match="row -128, column 64: computed twice with diff"):
            deliver(run, other)
        run.commit()
        with pytest.raises(MapStoreError, match="computed twice with different results"):
            deliver(run, other)
        receipt = replace(run.target.write(ZONE, other), unreadable={"north": "no such file"})
        assert not run.accept(receipt), "a scene that could not be read explains it"
    assert (store.read(ZONE, SHARDS[0], ref=run.name) == 1).all()


def test_a_pixel_with_data_and_without_a_class_is_not_accounted_for(store):
    with start(store) as run:
        silent = run.target.write(ZONE, shard_of(SHARDS[0], code=0, source=1))
        with pytest.raises(MapStoreError, match="0 pixels with a class and 0 without"):
            run.accept(silent)


def test_planned_is_written_and_explained(store):
    with start(store) as run:
        for shard in SHARDS[1:]:
            deliver(run, shard_of(shard))
        run.commit()
        with pytest.raises(MapStoreError, match="1 shards were not delivered, the first at row"):
            run.account()
        deliver(run, shard_of(SHARDS[0], code=0, source=0))
        run.commit()
        account = run.account()
    assert (account.shards, account.mapped, account.explained) == (6, 5 * 64**2, 64**2)
    told = MapStore(store.path).accounts(run.name)[ZONE, SHARDS[1]]
    assert told.scenes == {1: 64**2}


def test_shards_of_one_fork_are_merged_in_any_order_into_waves_that_others_came_between(store):
    with start(store) as run:
        early = [run.target.write(ZONE, shard_of(shard, 1 + i)) for i, shard in enumerate(SHARDS)]
        for receipt in (early[4], early[0]):
            run.accept(receipt)
            run.commit()
        for receipt in early:
            run.accept(receipt)
        run.commit()
        run.account()
    for i, shard in enumerate(SHARDS):
        assert (store.read(ZONE, shard, ref=run.name) == 1 + i).all()


def test_a_driver_whose_branch_was_committed_to_meanwhile_stops_and_loses_nothing(store):
    """Where no lock can be had, as in a bucket."""
    with start(store) as run:
        other = MapRun(store, run.record, run.planned)
        deliver(run, shard_of(SHARDS[0]))
        deliver(other, shard_of(SHARDS[1]))
        run.commit()
        with pytest.raises(MapStoreError, match="another process has committed"):
            other.commit()
    assert store.done(run.name) == {(ZONE, SHARDS[0])}


def test_a_second_writer_is_turned_away_while_the_first_one_writes(store):
    with start(store), pytest.raises(MapStoreError, match="another process is writing"):
        start(MapStore(store.path)).__enter__()
    with start(store):
        pass


def test_a_writer_that_died_does_not_lock_the_store(store):
    held = os.open(store.path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.close(held)
    with start(store):
        pass


# releases


def test_no_commit_repeats_the_lists_of_planned_shards_and_of_scenes(store):
    run = write_all(store, 1)
    root = zarr.open_group(store.zarr_store(run), mode="r")
    assert "planned" not in root.attrs
    assert "scenes" not in root.attrs["run"]
    assert store.planned(run) == store.done(run) == set(store.accounts(run))
    assert store.provenance(run).scenes == ("north", "south")


def test_an_incomplete_run_cannot_be_released(store):
    with start(store) as run:
        deliver(run, shard_of(SHARDS[0]))
        run.commit()
    with pytest.raises(MapStoreError, match="lacks 5 shards, the first at row -128, column 128"):
        store.release("v1", run.name)
    assert store.releases() == []
    assert (store.read(ZONE, EXTENT) == 255).all()


def test_a_release_is_what_main_shows_and_a_rollback_moves_it_back(store):
    first, second = write_all(store, 1), write_all(store, 2, model="n" * 64)
    store.release("v1", first)
    assert (store.read(ZONE, EXTENT) == 1).all()
    store.release("v2", second)
    assert (store.read(ZONE, EXTENT) == 2).all()
    assert [(r.name, r.current) for r in store.releases()] == [("v1", False), ("v2", True)]
    store.rollback("v1")
    assert (open_map(store.path).read(ZONE, EXTENT) == 1).all()
    assert [(r.name, r.current) for r in store.releases()] == [("v1", True), ("v2", False)]
    assert (store.read(ZONE, EXTENT, ref="v2") == 2).all(), "and can be read under its name"
    assert store.provenance().model == DIGESTS["model"]


def test_releasing_again_changes_nothing_and_a_name_stays_with_its_map(store):
    first, second = write_all(store, 1), write_all(store, 2, model="n" * 64)
    store.release("v1", first)
    before = files(store.path)
    store.release("v1", first)
    assert files(store.path) == before
    with pytest.raises(MapStoreError, match="'v1' is another map already"):
        store.release("v1", second)
    assert (store.read(ZONE, EXTENT) == 1).all()


@pytest.mark.parametrize("name", ["main", "run-1", "", "a/b", "../x", "-x"])
def test_a_name_that_could_be_mistaken_is_no_release(store, name):
    run = write_all(store, 1)
    with pytest.raises(MapStoreError, match="cannot name a release"):
        store.release(name, run)


def test_rolling_back_to_nothing_names_what_there_is(store):
    store.release("v1", write_all(store, 1))
    with pytest.raises(MapStoreError, match="no release 'v0'; releases: v1"):
        store.rollback("v0")


def test_a_branch_that_is_no_run_cannot_be_released(store):
    with pytest.raises(MapStoreError, match="main is no run"):
        store.release("v1", "main")


def test_a_state_is_read_by_release_run_or_snapshot_and_an_unknown_one_names_them(store):
    run = write_all(store, 3)
    store.release("v1", run)
    for ref in ("main", "v1", run, store.snapshot("v1")):
        assert (store.read(ZONE, SHARDS[0], ref=ref) == 3).all()
    with pytest.raises(MapStoreError, match=f"'v9'; releases: v1; runs: {run}"):
        store.read(ZONE, SHARDS[0], ref="v9")


# where and why


def test_a_pixel_of_the_store_lies_where_it_lies_in_the_image(store):
    """CF and GDAL readers take the place from GeoTransform, spatial_ref and the pixel centres."""
    session = store._repository.readonly_session("main")
    group = zarr.open_group(session.store, path=ZONE, mode="r")
    expected = GRID.transform(EXTENT)
    assert Affine.from_gdal(*group.attrs["GeoTransform"]) == expected
    mapping = group["spatial_ref"].attrs
    assert Affine.from_gdal(*map(float, mapping["GeoTransform"].split())) == expected
    assert CRS.from_wkt(mapping["crs_wkt"]) == CRS.from_user_input(GRID.crs)
    for name in ("landcover", "confidence", "source"):
        assert group[name].attrs["grid_mapping"] == "spatial_ref"
        assert group[name].metadata.dimension_names == ("y", "x")
    x, y = expected @ (100.5, 50.5)
    assert group["x"][100] == x
    assert group["y"][50] == y
    row, col = store.grid(ZONE).pixel_of(x, y)
    assert (row, col) == (EXTENT.row + 50, EXTENT.col + 100)


def test_the_layout_comes_back_as_it_was_planned(store):
    again = open_map(store.path)
    assert again.zones() == (ZONE,)
    assert again.grid(ZONE) == GRID
    assert again.window(ZONE) == EXTENT
    assert again.legend == SEVEN


def test_zones_come_in_one_order_however_often_the_store_is_opened(tmp_path):
    maps = {zone: (Window(0, 0, 64, 64), np.ones((64, 64), np.uint8)) for zone in ZONES}
    write_run(tmp_path / "map", "a", maps)
    orders = {open_map(tmp_path / "map").zones() for _ in range(20)}
    assert orders == {tuple(sorted(ZONES))}


def test_a_window_across_the_edge_is_filled_with_unwritten(store):
    store.release("v1", write_all(store, 4))
    window = Window(EXTENT.row - 10, EXTENT.col - 20, 30, 50)
    codes = store.read(ZONE, window)
    assert codes.shape == (30, 50)
    assert (codes[10:, 20:] == 4).all()
    assert (codes == 255).sum() == 30 * 50 - 20 * 30


def test_every_pixel_is_explained_by_scene_model_run_and_commit(store):
    with start(store) as run:
        deliver(run, shard_of(SHARDS[0], 5, source=2))
        run.commit()
        deliver(run, shard_of(SHARDS[1], 0, source=0))
        run.commit()
    told = store.explain(ZONE, SHARDS[0].row + 3, SHARDS[0].col + 9, ref=run.name)
    assert (told.landcover, told.confidence, told.scene) == (5, 55, "south")
    assert told.record.model == DIGESTS["model"]
    assert told.record.run == run.name
    assert told.snapshot not in (None, store.snapshot(run.name)), "the first wave's commit"
    other = store.explain(ZONE, SHARDS[1].row, SHARDS[1].col, ref=run.name)
    assert (other.scene, other.snapshot) == (None, store.snapshot(run.name))
    unwritten = store.explain(ZONE, SHARDS[5].row, SHARDS[5].col, ref=run.name)
    assert (unwritten.landcover, unwritten.snapshot) == (255, None)


def test_overviews_lie_where_the_map_lies_and_a_run_knows_what_they_do_not_show(store):
    with start(store) as run:
        for shard in SHARDS[:5]:
            deliver(run, shard_of(shard, 2))
        run.commit()
    assert store.without_overviews(run.name, ZONE, [2, 4]) == set(SHARDS[:5])
    with store.overviews_of(run.name, ZONE, [2, 4]) as levels:
        for level in levels.values():
            level[:] = 2
    assert store.without_overviews(run.name, ZONE, [2, 4]) == set()
    assert store.without_overviews(run.name, ZONE, [2, 4, 8]) == set(SHARDS[:5])
    with start(store) as run:
        deliver(run, shard_of(SHARDS[5], 2))
        run.commit()
    assert store.without_overviews(run.name, ZONE, [2, 4]) == {SHARDS[5]}
    tip = store.snapshot(run.name)
    with store.overviews_of(run.name, ZONE, [2, 4]):
        pass
    assert store.snapshot(run.name) == tip, "nothing was written"
    store.release("v1", run.name)
    assert store.overviews(ZONE) == (2, 4)
    codes, grid, window = store.overview(ZONE, 4)
    assert (codes == 2).all()
    assert grid.bounds(window) == GRID.bounds(EXTENT)
    with pytest.raises(MapStoreError, match="no overview by 8"):
        store.overview(ZONE, 8)
    with (
        pytest.raises(MapStoreError, match="no overview by 3"),
        store.overviews_of(run.name, ZONE, [3]),
    ):
        pass


# what does not fit, what is not there


@pytest.mark.parametrize(
    ("plan", "legend", "reason"),
    [
        (PLAN, FBP, "legend 'seven', not 'fbp'"),
        (Plan(ZONE, GRID, EXTENT, 32, SHARDS), SEVEN, "shard 64, not 32"),
        (
            Plan(ZONE, GRID, EXTENT, 64, (*SHARDS, Window(0, 64, 64, 64))),
            SEVEN,
            "columns 64..256, not 1 shards beyond them, the first at row 0, column 64",
        ),
        (Plan(ZONE, PixelGrid(GRID.crs, 10, 10, 0, 0), EXTENT, 64, SHARDS), SEVEN, "grid"),
        (Plan("epsg32651", GRID, EXTENT, 64, SHARDS), SEVEN, "zones epsg32650, not epsg32651"),
    ],
)
def test_a_store_of_another_legend_grid_or_shard_size_is_refused(store, plan, legend, reason):
    with pytest.raises(MapStoreError, match=f"{store.path}.*{reason}.*new folder"):
        MapStore.open_for(store.path, [plan], legend)


def test_the_same_plan_opens_the_store_that_is_there(store):
    run = write_all(store, 1)
    assert MapStore.open_for(store.path, [PLAN], SEVEN).runs() == (run,)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(ZONE, GRID, Window(0, 0, 64, 64), 64, ()),
        Plan(ZONE, GRID, EXTENT.buffered(64), 64, SHARDS[:1]),
        Plan("epsg32651", GRID, EXTENT, 64, ()),
    ],
    ids=["nothing to write", "scenes beyond it", "no scene in a zone"],
)
def test_a_store_takes_every_plan_whose_shards_lie_in_it(store, plan):
    assert MapStore.open_for(store.path, [PLAN, plan], SEVEN).layout == store.layout


def test_no_store_means_one_sentence_and_no_folder(tmp_path):
    with pytest.raises(MapStoreError, match="nowhere: no map store here"):
        open_map(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "map.tif").write_bytes(b"")
    assert not is_map_store(tmp_path / "map.tif")
    with pytest.raises(MapStoreError, match=r"map\.tif: no map store"):
        open_map(tmp_path / "map.tif")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(MapStoreError, match="not empty"):
        MapStore.open_for(tmp_path / "photos", [PLAN], SEVEN)
    assert files(tmp_path) == {"photos/cat.jpg": b"cat"}


def test_an_icechunk_store_without_a_map_is_none(tmp_path):
    icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "other")))
    with pytest.raises(MapStoreError, match="other: an Icechunk store, but no map"):
        open_map(tmp_path / "other")


def test_a_damaged_store_names_its_path(store):
    for snapshot in (store.path / "snapshots").iterdir():
        snapshot.write_bytes(b"")
    with pytest.raises(MapStoreError, match=f"{store.path}: the map store cannot be opened"):
        open_map(store.path)


def test_a_target_below_a_file_is_an_error_from_the_disk_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="file"):
        MapStore.create(tmp_path / "file" / "map", [PLAN], SEVEN)
    assert files(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("what", ["zone", "array"])
def test_an_unknown_zone_or_array_names_the_known_ones(store, what):
    with pytest.raises(MapStoreError, match=ZONE if what == "zone" else "landcover, confidence"):
        store.read("x" if what == "zone" else ZONE, EXTENT, "x" if what == "array" else "source")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", kilobytes=512)


def fill(disk: Path) -> Path:
    """Write a file until the disk is full."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 1024)
    return ballast


def noisy(window: Window) -> ShardResult:
    rng = np.random.default_rng(abs(window.row) + window.col)
    codes = rng.integers(1, 8, window.shape, dtype=np.uint8)
    return ShardResult(window, codes, codes, rng.integers(0, 65535, window.shape, np.uint16))


def test_on_a_full_disk_the_committed_shards_stay_readable_and_the_run_goes_on(full_disk):
    store = MapStore.create(full_disk / "map", [PLAN], SEVEN)

    def go_on() -> None:
        with start(store) as run:
            for _, shard in run.todo():
                deliver(run, noisy(shard))
                run.commit()

    with start(store) as run:
        deliver(run, noisy(SHARDS[0]))
        run.commit()
    before = store.read(ZONE, EXTENT, ref=run.name)
    ballast = fill(full_disk)
    with pytest.raises(MapStoreError, match=f"{store.path}.*No space left.*run again"):
        go_on()
    assert np.array_equal(open_map(store.path).read(ZONE, EXTENT, ref=run.name), before)
    ballast.unlink()
    go_on()
    assert store.missing(run.name) == set()


def test_no_room_for_a_new_store_leaves_nothing(full_disk):
    fill(full_disk)
    with pytest.raises((MapStoreError, OSError), match=r"[Nn]o space left"):
        MapStore.create(full_disk / "map", [PLAN], SEVEN)
    assert [p.name for p in full_disk.iterdir()] == ["ballast"]
