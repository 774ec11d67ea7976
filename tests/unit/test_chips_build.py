"""From scenes and a label product to chips, in their place and never half."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import zarr
from affine import Affine

from terrafine.chips import (
    BuildGroup,
    BuildRunner,
    ChipStore,
    GroupRecord,
    build_chips,
    in_processes,
    in_turn,
    local_runner,
    open_chips,
)
from terrafine.errors import (
    ChipStoreError,
    LegendError,
    RasterError,
    StageError,
    StorageError,
    TerrafineError,
    UnreachableError,
)
from terrafine.raster import files as raster_files
from terrafine.raster import open_class_raster, open_mosaics
from terrafine.spec import load_spec
from terrafine.storage import Storage
from tests.buckets import Weather, s3_bucket, s3_bucket_in
from tests.disks import small_disk
from tests.processes import family, living
from tests.scenes import CRS, TRANSFORM, Project, write_raster

QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def build(
    project: Project, path: Path | str | None = None, runner: BuildRunner = in_turn
) -> ChipStore:
    spec = load_spec(project.spec)
    mosaics = open_mosaics(spec.imagery, project.root)
    labels = open_class_raster(spec.labels, spec.resolve_legend(), project.root)
    return build_chips(
        path or project.root / "out" / "chips",
        spec=spec,
        mosaics=mosaics,
        labels=labels,
        runner=runner,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Killed(BaseException):
    """What Ctrl-C or a lost machine is to a build."""


def backwards(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
    """Last group first, some twice, as an engine that lost a worker may do it."""
    for group in reversed(groups):
        if group % 2:
            build(group)
        yield build(group)


def killed_after(finished: int, noted: list[int] | None = None) -> BuildRunner:
    def run(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        for group in groups[:finished]:
            if noted is not None:
                noted.append(group)
            yield build(group)
        raise Killed

    return run


def noting(noted: list[int]) -> BuildRunner:
    def run(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        noted.extend(groups)
        return map(build, groups)

    return run


def refusal(project: Project, kind: type[TerrafineError]) -> str:
    with pytest.raises(kind) as error:
        build(project)
    folder = project.root / "out"
    left = [str(p) for p in folder.rglob("*")] if folder.exists() else []
    assert left == [], "a half-made store is left behind"
    return str(error.value)


def test_a_chip_holds_image_and_label_of_its_place(project: Project) -> None:
    store = build(project)
    assert (store.bands, store.size, store.fill) == (4, 32, 0)
    origin = store.grid(0).window(TRANSFORM, project.truth_HW.shape, where="scene")
    with rasterio.open(project.root / "product.tif") as file:
        product_HW = file.read(1).repeat(3, axis=0).repeat(3, axis=1)
    seen = 0
    for index in range(len(store)):
        window = store.window(index)
        assert window.is_aligned(32), "chips lie on the global grid"
        part = window.intersection(origin)
        assert part is not None
        here = part.slices(within=window)
        there = part.slices(within=origin)
        image_CHW, label_HW = store.image(index), store.label(index)
        assert (image_CHW[:, *here] == project.image_CHW[:, *there]).all()
        outside = np.ones((32, 32), bool)
        outside[here] = (project.image_CHW[:, *there] == 0).any(axis=0)
        assert (label_HW[outside] == 0).all(), "no label where there is no image"
        expected = np.select([product_HW[there] == code for code in (10, 20, 60, 80)], [1, 2, 4, 5])
        assert (label_HW[here] == np.where(outside[here], 0, expected)).all()
        seen += part.height * part.width
    assert seen >= 0.8 * project.truth_HW.size
    assert len({store.window(i) for i in range(len(store))}) == len(store)


def test_the_table_says_what_is_on_a_chip_and_where(project: Project) -> None:
    store = build(project)
    table = store.table
    assert table.crs.to_epsg() == 4326
    assert set(table["split"]) == {"train", "validation"}
    for index, row in table.iterrows():
        label_HW = store.label(index)
        for code, name in zip(store.legend.codes, store.legend.names, strict=True):
            assert row[f"share_{name}"] == pytest.approx((label_HW == code).mean())
        assert row["missing_share"] == pytest.approx((label_HW == 0).mean())
        assert row["missing_share"] <= 0.5
        bare = (store.image(index) == store.fill).any(axis=0).mean()
        assert row["nodata_share"] == pytest.approx(bare)
        assert np.isnan(row["agreement"]), "no model has seen it yet"
        assert list(row["sources"]) == ["scene"]
        assert (row["zone"], row["crs"]) == ("epsg32650", CRS)
        transform = Affine(*row["transform"])
        assert transform == store.grid(index).transform(store.window(index))
        assert (row["row"], row["col"]) == (store.window(index).row, store.window(index).col)
    assert table["id"].is_unique
    # the footprint in degrees is the chip's place, by another way there
    left, _, _, top = store.grid(0).bounds(store.window(0))
    (lon,), (lat,) = rasterio.warp.transform(CRS, "EPSG:4326", [left], [top])
    corner = min(
        table.geometry[0].exterior.coords, key=lambda c: (c[0] - lon) ** 2 + (c[1] - lat) ** 2
    )
    assert corner == pytest.approx((lon, lat), abs=1e-9)


def test_the_store_does_not_depend_on_who_built_what_in_which_order(project: Project) -> None:
    project.change_spec(chips={"max_missing": 0.0})  # some tiles are left out: slots stay empty
    alone = build(project, project.root / "alone")
    assert 8 < len(alone) < zarr.open_group(alone.storage.location, mode="r")["label"].shape[0]
    first = files(project.root / "alone")
    build(project, project.root / "two", runner=local_runner(2))
    assert files(project.root / "two") == first
    build(project, project.root / "turned", runner=backwards)
    assert files(project.root / "turned") == first


def test_a_killed_build_goes_on_where_it_was(project: Project) -> None:
    whole = files(Path(build(project, project.root / "whole").storage.location))
    path = project.root / "chips"
    done: list[int] = []
    with pytest.raises(Killed):
        build(project, path, runner=killed_after(2, done))
    with pytest.raises(ChipStoreError, match="its building has not come to an end; run"):
        open_chips(path)
    # a record whose shard was lost, and a shard that was being written
    (path / "image" / "c.1.0.0.0").unlink()
    (path / "label" / "c.2.0.0#1").write_bytes(b"half")
    again: list[int] = []
    build(project, path, runner=noting(again))
    assert done == [0, 1]
    assert again[:2] == [1, 2], "group 0 is not built again, group 1 has lost a shard"
    assert 0 not in again
    assert files(path) == whole


def test_a_killed_process_leaves_a_build_to_go_on_from(project: Project) -> None:
    path = project.root / "chips"
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.test_chips_build", project.root, "1"], env=QUIET
    )
    record = path / "build" / "00000001.json"
    while not record.exists():
        assert child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    again: list[int] = []
    build(project, path, runner=noting(again)).verify()
    assert 0 not in again
    assert files(path) == files(Path(build(project, project.root / "whole").storage.location))


@pytest.mark.timeout(240)
def test_a_killed_build_leaves_no_processes(project: Project) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.test_chips_build", project.root, "2"], env=QUIET
    )
    while not (project.root / "chips" / "build" / "00000001.json").exists():
        assert child.poll() is None
        time.sleep(0.01)
    cutting = family(child.pid)
    assert len(cutting) >= 2
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not living(cutting, seconds=120)


@dataclass(frozen=True)
class OutOfMemory:
    """Cuts a group's chips, and is killed over one of them."""

    build: BuildGroup
    group: int

    def __call__(self, group: int) -> GroupRecord:
        if group == self.group:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.build(group)


@pytest.mark.timeout(240)
def test_a_process_that_is_killed_ends_the_build_which_goes_on_when_run_again(
    project: Project,
) -> None:
    path = project.root / "chips"

    def too_large(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        return in_processes(OutOfMemory(build, 3), groups, 2)

    with pytest.raises(StageError, match=r"2 processes that cut chips died.*lower chips\.workers"):
        build(project, path, runner=too_large)
    again: list[int] = []
    build(project, path, runner=noting(again)).verify()
    assert 3 in again
    assert 0 not in again


def read_until(group: int, fails: Callable[[], object]) -> BuildRunner:
    """From that group on the imagery cannot be read."""

    def run(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        for number in groups:
            if number == group:
                fails()
            yield build(number)

    return run


def test_what_is_finished_is_kept_while_a_bucket_with_imagery_cannot_be_reached(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MAX_RETRY": "1", "RETRY_DELAY": "0.01"}.items():
        monkeypatch.setitem(raster_files._REMOTE, f"GDAL_HTTP_{name}", value)
    weather, path = Weather(), project.root / "chips"
    with s3_bucket_in(weather) as bucket:
        scenes = Storage.at(f"{bucket}/scenes")
        scenes.write("scene_20200601.tif", (project.root / "scene.tif").read_bytes())
        catalogue = {"source": scenes.location}
        project.change_spec(imagery={"scenes": [], "catalogue": catalogue, "nodata": 0})

        def outage() -> None:
            weather.instead["scene_"] = repeat(503)
            raster_files._FILES.close(f"{scenes}/scene_20200601.tif")

        with pytest.raises(UnreachableError, match="what is finished is kept"):
            build(project, path, runner=read_until(3, outage))
        weather.instead.clear()
        again: list[int] = []
        build(project, path, runner=noting(again)).verify()
        assert again
        assert again[0] == 3
        assert files(path) == files(Path(build(project, project.root / "whole").storage.location))


def test_what_is_finished_is_kept_while_a_disk_with_imagery_cannot_be_read(
    project: Project,
) -> None:
    path, scene = project.root / "chips", project.root / "scene.tif"
    whole = scene.read_bytes()
    with pytest.raises(RasterError, match=r"scene\.tif: cannot be read"):
        build(project, path, runner=read_until(3, lambda: scene.write_bytes(whole[:1000])))
    scene.write_bytes(whole)
    again: list[int] = []
    build(project, path, runner=noting(again)).verify()
    assert again
    assert again[0] == 3


def killed_at(step: int, patch: pytest.MonkeyPatch) -> Iterator[int]:
    """Kill this process, as it were, before the step-th change of a store, or in the midst of a
    removal; counts them."""
    steps = count()

    def killing(change: Callable[..., Any], half: Callable[..., object]) -> Callable[..., Any]:
        def changed(*args: Any, **options: Any) -> Any:
            if next(steps) == step:
                half(*args)
                raise Killed
            return change(*args, **options)

        return changed

    def half_cleared(storage: Storage, folder: str = "") -> None:
        for name in storage.names(folder)[::2]:
            (Path(storage.location) / name).unlink()

    for owner, name in ((Storage, "write"), (Storage, "delete"), (zarr.Group, "create_array")):
        patch.setattr(owner, name, killing(getattr(owner, name), lambda *_: None))
    patch.setattr(Storage, "clear", killing(Storage.clear, half_cleared))
    return steps


@pytest.mark.parametrize("before", ["nothing", "another store", "codes that are unknown"])
def test_a_build_killed_at_any_step_leaves_what_the_next_one_goes_on_from(
    project: Project, before: str
) -> None:
    project.change_spec(chips={"size": 64, "max_missing": 0.2})
    other = Path(build(project, project.root / "other").storage.location)
    project.change_spec(chips={"max_missing": 0.5}, labels={"crosswalk": "FROM-GLC10"})
    whole = files(Path(build(project, project.root / "whole").storage.location))
    for step in count():
        path = project.root / f"chips{step}"
        if before == "another store":
            shutil.copytree(other, path)
        if before == "codes that are unknown":
            project.change_spec(labels={"crosswalk": "NLCD"})
        with pytest.MonkeyPatch.context() as patch:
            steps = killed_at(step, patch)
            with suppress(Killed, LegendError):
                build(project, path)
            made = next(steps)
        project.change_spec(labels={"crosswalk": "FROM-GLC10"})
        build(project, path)
        assert files(path) == whole, f"killed at step {step}"
        if made <= step:
            break
    assert step > 8


def test_a_store_that_is_whole_is_not_built_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.root / "chips"

    def killed(storage: Storage, folder: str = "") -> None:
        if folder == "build" and (path / "chips.parquet").exists():
            (path / "build" / "00000000.json").unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "clear", killed)
        with pytest.raises(Killed):
            build(project, path)
    again: list[int] = []
    build(project, path, runner=noting(again)).verify()
    assert not again
    assert files(path) == files(Path(build(project, project.root / "whole").storage.location))


def test_another_spec_does_not_go_on_from_it(project: Project) -> None:
    path = project.root / "chips"
    with pytest.raises(Killed):
        build(project, path, runner=killed_after(2))
    project.change_spec(chips={"max_missing": 0.3})
    again: list[int] = []
    build(project, path, runner=noting(again))
    assert again[0] == 0


def test_an_error_in_a_worker_process_is_the_same_error(project: Project) -> None:
    project.change_spec(labels={"crosswalk": "NLCD"})
    with pytest.raises(LegendError, match=r"product\.tif \(within x "):
        build(project, runner=local_runner(2))
    assert not (project.root / "out" / "chips").exists()


def test_a_store_in_a_bucket_is_the_one_on_disk(project: Project, bucket: str) -> None:
    there = build(project, f"{bucket}/run/chips", runner=local_runner(2))
    here = build(project, project.root / "chips")
    there.verify()
    assert len(there) == len(here)
    for index in range(0, len(here), 5):
        for a, b in zip(there.crop(index, 3, 1, 20), here.crop(index, 3, 1, 20), strict=True):
            assert (a == b).all()
    stored = Storage.at(f"{bucket}/run/chips")
    assert {name: stored.read(name) for name in stored.names()} == files(project.root / "chips")
    with pytest.raises(StorageError, match="from a process forked from one that has used it"):
        multiprocessing.get_context("fork").Pool(1).apply(there.crop, (0, 0, 0, 32))
    gone = f"label/c.{here.positions[-1] // 8}.0.0"
    stored.delete([gone])
    with pytest.raises(ChipStoreError, match=rf"incomplete: shard {gone} is not there"):
        open_chips(there.storage.location)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


def test_overlapping_scenes_give_no_overlapping_chips(project: Project) -> None:
    half = project.image_CHW[:, :, 80:] + np.uint16(1)
    half[:, :5] = 0
    write_raster(
        project.root / "east.tif", half, nodata=0, transform=TRANSFORM @ Affine.translation(80, 0)
    )
    project.change_spec(
        imagery={
            "scenes": [
                {"name": "east", "files": ["east.tif"]},
                {"name": "whole", "files": ["scene.tif"]},
            ]
        }
    )
    store = build(project)
    windows = [store.window(i) for i in range(len(store))]
    assert all(a.intersection(b) is None for i, a in enumerate(windows) for b in windows[:i])
    assert {name for names in store.table["sources"] for name in names} == {"east", "whole"}
    assert any(len(names) == 2 for names in store.table["sources"])


def test_no_validation_pixel_is_trained_on_across_zones(project: Project) -> None:
    # The same ground once more in the neighbouring zone, as scenes at a zone's edge have it.
    with rasterio.open(project.root / "scene.tif") as file:
        bounds = rasterio.warp.transform_bounds(CRS, "EPSG:32651", *file.bounds)
    transform = Affine(3, 0, bounds[0] // 3 * 3, 0, -3, bounds[3] // 3 * 3)
    side = int((bounds[2] - bounds[0]) // 3)
    noise = np.random.default_rng(0).integers(1, 999, (4, side, side), np.uint16)
    write_raster(
        project.root / "second.tif", noise, nodata=0, crs="EPSG:32651", transform=transform
    )
    project.change_spec(
        imagery={
            "scenes": [
                {"name": "first", "files": ["scene.tif"]},
                {"name": "second", "files": ["second.tif"]},
            ]
        },
        chips={"max_missing": 0.6},
    )
    store = build(project)
    assert set(store.table["zone"]) == {"epsg32650", "epsg32651"}
    train, held = (store.table.geometry.iloc[store.indexes(s)] for s in ("train", "validation"))
    assert len(train) > 0
    shared = shapely.intersection(train.union_all(), held.union_all()).area
    assert shared < 1e-6 * held.union_all().area
    left_out = set(store.table["split"]) - {"train", "validation"}
    assert left_out == {"overlap"}
    assert store.grid(len(store) - 1).crs == "EPSG:32651"


def test_chips_with_too_little_on_them_are_left_out(project: Project) -> None:
    project.change_spec(chips={"max_missing": 0.0})
    strict = build(project, project.root / "strict")
    project.change_spec(chips={"max_missing": 0.99})
    loose = build(project, project.root / "loose")
    assert (strict.table["missing_share"] == 0).all()
    assert len(strict) < len(loose)
    slots = zarr.open_group(strict.storage.location, mode="r")["label"]
    for slot in set(range(slots.shape[0])) - set(strict.positions.tolist()):
        assert not slots[slot].any(), "an empty slot has no label"


def test_an_all_nodata_scene_is_refused(project: Project) -> None:
    write_raster(project.root / "empty.tif", np.zeros((4, 192, 192), np.uint16), nodata=0)
    scenes = [{"name": "scene", "files": ["scene.tif"]}, {"name": "empty", "files": ["empty.tif"]}]
    project.change_spec(imagery={"scenes": scenes})
    message = refusal(project, ChipStoreError)
    assert message.startswith(f"scene empty ({project.root / 'empty.tif'}): every pixel is missing")
    assert "imagery.nodata" in message
    project.change_spec(imagery={"scenes": scenes[1:]})
    assert "scene empty" in refusal(project, ChipStoreError)


def test_a_scene_wholly_under_another_is_fine(project: Project) -> None:
    scenes = [{"name": n, "files": ["scene.tif"]} for n in ("above", "below")]
    project.change_spec(imagery={"scenes": scenes})
    assert {name for names in build(project).table["sources"] for name in names} == {"above"}


def test_a_product_of_elsewhere_is_refused(project: Project) -> None:
    project.change_spec(labels={"crs": "EPSG:32633"})
    message = refusal(project, RasterError)
    assert "product.tif: the label product covers" in message


def test_a_product_that_labels_nothing_is_refused(project: Project) -> None:
    project.change_spec(labels={"crosswalk": {10: 0, 20: 0, 60: 0, 80: 0}})
    message = refusal(project, ChipStoreError)
    assert "none of" in message
    assert "chips.max_missing" in message


def test_unknown_label_codes_are_refused(project: Project) -> None:
    project.change_spec(labels={"crosswalk": "NLCD"})
    message = refusal(project, LegendError)
    assert "product.tif (within x " in message
    assert "10 (" in message
    assert "'NLCD'" in message


def test_nan_in_the_imagery_is_refused(project: Project) -> None:
    image_CHW = project.image_CHW.astype(np.float32)
    image_CHW[3, 100, 90] = np.nan
    write_raster(project.root / "scene.tif", image_CHW, nodata=0)
    with pytest.raises(RasterError) as error:
        build(project)
    message = str(error.value)
    assert "scene.tif: band 4, row 100, column 90 holds nan" in message
    assert "imagery.nodata" in message


def test_one_block_of_chips_is_refused(project: Project) -> None:
    project.change_spec(chips={"block": 1000})
    assert "smaller chips.block or chips.size" in refusal(project, ChipStoreError)


def test_a_store_is_replaced_but_nothing_else_is(project: Project) -> None:
    path = project.root / "chips"
    build(project, path)
    project.change_spec(chips={"max_missing": 0.0})
    again = build(project, path)
    assert (open_chips(path).table["missing_share"] == 0).all()
    assert len(again) == len(open_chips(path))
    (project.root / "precious").mkdir()
    (project.root / "precious" / "thesis.txt").write_text("years of work")
    shutil.copy(path / "chips.parquet", project.root / "precious")
    with pytest.raises(ChipStoreError, match=r"precious: is there and is no chip store"):
        build(project, project.root / "precious")
    assert (project.root / "precious" / "thesis.txt").exists()


def test_a_target_that_cannot_be_written_is_refused(project: Project) -> None:
    (project.root / "file").touch()
    with pytest.raises(StorageError, match=r"/file/chips: cannot open it .*has space left"):
        build(project, project.root / "file" / "chips")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", kilobytes=256)


def test_a_full_disk_is_said_and_the_build_goes_on_when_there_is_room(
    project: Project, disk: Path
) -> None:
    # two of the groups fit beside it
    (disk / "other").write_bytes(bytes(80_000))
    with pytest.raises(StorageError) as error:
        build(project, disk / "chips")
    assert str(error.value).startswith(f"{disk}/chips")
    assert "No space left on device" in str(error.value)
    (disk / "other").unlink()
    noted: list[int] = []
    with pytest.raises(ChipStoreError, match="not come to an end"):
        open_chips(disk / "chips")
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    build(project, disk / "chips", runner=noting(noted)).verify()
    assert noted
    assert 0 not in noted
    assert not list(disk.rglob("*#*")), "no half-written shard stays"


@pytest.mark.shared
def test_zion_gives_chips_of_many_classes(zion: Path, tmp_path: Path) -> None:
    spec = load_spec(Path(__file__).parents[2] / "examples" / "zion.yaml")
    mosaics = open_mosaics(spec.imagery, zion)
    labels = open_class_raster(spec.labels, spec.resolve_legend(), zion)
    store = build_chips(tmp_path / "chips", spec=spec, mosaics=mosaics, labels=labels)
    assert 80 < len(store) < 130
    for split, least in (("train", 0.7), ("validation", 0.2)):
        part = store.table.iloc[store.indexes(split)]
        assert least - 0.01 <= len(part) / len(store) <= 0.81
        present: Any = part[[f"share_{name}" for name in store.legend.names]].gt(0).any()
        assert present.sum() == 6, "all but snow/ice, on both sides"


def _slowly(workers: int) -> BuildRunner:
    def run(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        for record in local_runner(workers)(build, groups):
            yield record
            time.sleep(0.2)

    return run


if __name__ == "__main__":
    root = Path(sys.argv[1])
    empty = np.empty(0)
    build(Project(root, empty, empty), root / "chips", runner=_slowly(int(sys.argv[2])))
