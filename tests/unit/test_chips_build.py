"""From scenes and a label product to chips, in their place and never half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from terrafine.chips import ChipStore, build_chips, open_chips
from terrafine.errors import ChipStoreError, LegendError, RasterError, TerrafineError
from terrafine.raster import open_class_raster, open_mosaics
from terrafine.spec import load_spec
from tests.disks import small_disk
from tests.scenes import CRS, TRANSFORM, Project, write_raster


def build(project: Project, path: Path | None = None) -> ChipStore:
    spec = load_spec(project.spec)
    mosaics = open_mosaics(spec.imagery, project.root)
    labels = open_class_raster(spec.labels, spec.resolve_legend(), project.root)
    return build_chips(
        path or project.root / "out" / "chips", spec=spec, mosaics=mosaics, labels=labels
    )


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


def test_the_same_spec_gives_the_same_store(project: Project) -> None:
    first = build(project, project.root / "a")
    second = build(project, project.root / "b")
    assert (
        first.table.drop(columns="geometry")
        .astype(str)
        .equals(second.table.drop(columns="geometry").astype(str))
    )
    assert first.info == second.info


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
    assert loose.images.shape[0] == len(loose), "the arrays hold the chips that were kept"


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
    message = refusal(project, RasterError)
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
    with pytest.raises(ChipStoreError, match=r"precious: is there and is no chip store"):
        build(project, project.root / "precious")
    assert (project.root / "precious" / "thesis.txt").exists()
    assert not any(p.name.endswith(".partial") for p in project.root.iterdir())


def test_a_target_that_cannot_be_written_is_refused(project: Project) -> None:
    (project.root / "file").touch()
    with pytest.raises(ChipStoreError, match=r"chips: .*cannot be written to .*/file .*choose ano"):
        build(project, project.root / "file" / "chips")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", kilobytes=256)


def test_a_full_disk_leaves_no_store_behind(project: Project, disk: Path) -> None:
    with pytest.raises(ChipStoreError) as error:
        build(project, disk / "chips")
    assert f"cannot be written to {disk} (No space left on device)" in str(error.value)
    assert "free space" in str(error.value)
    assert os.listdir(disk) == []


def test_a_killed_builds_remains_are_cleared_away(project: Project) -> None:
    partial = project.root / ".chips.partial"
    (partial / "image").mkdir(parents=True)
    (partial / "image" / "junk").write_text("half a chip")
    store = build(project, project.root / "chips")
    assert not partial.exists()
    store.verify()


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
