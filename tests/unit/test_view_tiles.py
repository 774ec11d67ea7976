"""Tiles of a map store: every pixel where it belongs, at every scale, finished or not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapReader, MapStore, Plan, ShardResult
from terrafine.publish import write_overviews
from terrafine.publish.figures import class_palette
from terrafine.spec import load_spec
from terrafine.view import Atlas, Imagery, Product
from terrafine.view.history import History
from terrafine.view.maps import DONE, PLANNED, MapPixels, Pixels
from terrafine.view.mercator import Place, Tile
from tests import scenes
from tests.map_stores import ZONES, random_map, release_maps, write_run
from tests.viewer import (
    LATITUDE,
    LONGITUDE,
    atlas_of,
    codes_under,
    pixels_under,
    tile_over,
    two_zones,
    window_at,
)

# of a tile's 65 536 pixels, those whose centre may lie on the edge of two of the map's
ON_EDGE = 8


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two") / "map.icechunk"
    release_maps(path, "one", two_zones())
    return path


def shown(path: Path, layer: str, tile: Tile, ref: str = "main") -> Pixels:
    reader = MapReader(path)
    return MapPixels(reader, History(reader), reader.snapshot(ref)).tile(layer, tile)


def test_every_pixel_of_a_tile_is_the_one_under_its_centre(released: Path) -> None:
    expected, tiles = two_zones(), 0
    for z in (15, 16, 18):
        for dx in (-1, 0, 1):
            over = tile_over(LONGITUDE, LATITUDE, z)
            tile = Tile(z, over.x + dx, over.y)
            codes_HW = codes_under(tile, expected)
            found = shown(released, "map", tile)
            assert (found.values_HW != codes_HW).sum() <= ON_EDGE, tile
            assert not found.shards_HW.any()
            tiles += bool((codes_HW != 255).any())
    assert tiles >= 6, "the tiles do not lie over the map"


def test_confidence_is_shown_where_there_is_a_class_and_nowhere_else(released: Path) -> None:
    tile = tile_over(LONGITUDE, LATITUDE, 16)
    codes_HW = codes_under(tile, two_zones())
    expected_HW = np.where(np.isin(codes_HW, (0, 255)), 255, codes_HW + 50)

    assert (shown(released, "confidence", tile).values_HW != expected_HW).sum() <= ON_EDGE


def test_a_tile_is_drawn_in_the_legends_colours(released: Path) -> None:
    atlas, tile = atlas_of(released), tile_over(LONGITUDE, LATITUDE, 16)
    at = str(atlas.state(None)["snapshot"])
    codes_HW = shown(released, "map", tile).values_HW
    rgba = np.asarray(
        Image.open(io.BytesIO(atlas.tile("map", tile, at, frozenset()))).convert("RGBA")
    )
    alone = np.asarray(
        Image.open(io.BytesIO(atlas.tile("map", tile, at, frozenset([4])))).convert("RGBA")
    )

    palette = class_palette(SEVEN)
    for code in SEVEN.codes:
        assert (rgba[codes_HW == code] == palette[code]).all()
    assert (rgba[codes_HW == 255][:, 3] == 0).all(), "what is not mapped hides what lies below"
    assert (alone[codes_HW == 4] == palette[4]).all()
    assert (alone[codes_HW == 5][:, 3] < 60).all(), "another class is as clear as the chosen one"


def test_a_run_without_overviews_looks_from_afar_as_its_release_will(tmp_path: Path) -> None:
    side, shard = 1024, 256
    window = window_at("epsg32650", LONGITUDE, LATITUDE, side, shard)
    maps = {"epsg32650": (window, random_map(5, (side, side), patch=32))}
    store, run = write_run(tmp_path / "m", "one", maps, shard=shard)
    tiles = [tile_over(LONGITUDE, LATITUDE, z) for z in (11, 13, 14)]
    before = [shown(tmp_path / "m", "map", tile, run).values_HW for tile in tiles]
    write_overviews(store, run)
    after = [shown(tmp_path / "m", "map", tile, run).values_HW for tile in tiles]

    assert store.overviews("epsg32650", run) == (2, 4)
    for tile, one, other in zip(tiles[1:], before[1:], after[1:], strict=True):
        assert (one != 255).any(), tile
        np.testing.assert_array_equal(one, other)
    # further out than the coarsest overview, single pixels of it are seen
    assert ((before[0] != 255) == (after[0] != 255)).all()


def test_shards_mapped_after_the_overviews_are_seen_at_once(tmp_path: Path) -> None:
    side, shard = 1024, 256
    window = window_at("epsg32650", LONGITUDE, LATITUDE, side, shard)
    whole_HW = random_map(6, (side, side), patch=32)
    half_HW = whole_HW.copy()
    half_HW[:, side // 2 :] = 255
    store, run = write_run(tmp_path / "m", "one", {"epsg32650": (window, half_HW)}, shard=shard)
    write_overviews(store, run)
    write_run(tmp_path / "m", "one", {"epsg32650": (window, whole_HW)}, shard=shard)
    late = shown(tmp_path / "m", "map", tile_over(LONGITUDE, LATITUDE, 13), run)

    write_run(tmp_path / "n", "one", {"epsg32650": (window, whole_HW)}, shard=shard)
    same = shown(tmp_path / "n", "map", tile_over(LONGITUDE, LATITUDE, 13), run)
    np.testing.assert_array_equal(late.values_HW, same.values_HW)


def test_too_far_out_a_run_shows_its_shards_and_says_from_where_its_pixels(tmp_path: Path) -> None:
    shard, side = 2048, 2**15
    window = window_at("epsg32650", LONGITUDE, LATITUDE, side, shard)
    done, left = (Window(window.row, window.col + n * 4 * shard, shard, shard) for n in (1, 2))
    plans = [Plan("epsg32650", ZONES["epsg32650"], window, shard, (done, left))]
    store = MapStore.open_for(tmp_path / "m", plans, SEVEN)
    ones = np.ones((shard, shard), np.uint8)
    with store.run(plans, model="m", spec="s", scenes=["a"], mapping={}) as run:
        run.accept(run.target.write("epsg32650", ShardResult(done, ones, ones, ones.astype("u2"))))
        run.commit()
    tile = tile_over(LONGITUDE, LATITUDE, 8)
    found = shown(tmp_path / "m", "map", tile, run.name)

    marks = np.zeros(window.shape, np.uint8)
    marks[done.slices(window)], marks[left.slices(window)] = DONE, PLANNED
    grid = ZONES["epsg32650"]
    expected_HW = pixels_under(tile, grid, window, marks, 0)
    assert {DONE, PLANNED} <= set(np.unique(expected_HW))
    assert (found.values_HW == 255).all()
    assert (found.shards_HW != expected_HW).sum() <= ON_EDGE
    state = atlas_of(tmp_path / "m").state(None)
    assert (state["ref"], state["done"], state["planned"]) == (run.name, 1, 2)
    fine = state["fine_from"]["map"]
    assert Place(grid, window).coarseness(fine) <= 22.7 < Place(grid, window).coarseness(fine - 1)


def test_what_is_told_of_a_run_grows_with_its_commits(tmp_path: Path) -> None:
    maps = two_zones()
    half = {zone: (window, codes_HW.copy()) for zone, (window, codes_HW) in maps.items()}
    for _, codes_HW in half.values():
        codes_HW[64:] = 255
    _, run = write_run(tmp_path / "m", "one", half)
    reader = MapReader(tmp_path / "m")
    history = History(reader)
    first = history.progress(reader.snapshot(run))
    write_run(tmp_path / "m", "one", maps)
    then = history.progress(reader.snapshot(run))

    assert (first.done, len(first.latest), first.per_minute) == (4, 4, None)
    assert (then.done, len(then.latest)) == (8, 4)
    assert not set(then.latest) & set(first.latest)
    assert then == History(reader).progress(reader.snapshot(run))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> scenes.Project:
    return scenes.make_project(tmp_path_factory.mktemp("project"))


def over_project(z: int) -> Tile:
    x, y = scenes.TRANSFORM @ (scenes.SIZE / 2, scenes.SIZE / 2)
    lon, lat = rasterio.warp.transform(scenes.CRS, "EPSG:4326", [x], [y])
    return tile_over(lon[0], lat[0], z)


def test_imagery_and_product_lie_where_their_files_say(project: scenes.Project) -> None:
    spec, tile = load_spec(project.spec), over_project(16)
    imagery, product = Imagery.of(spec, project.root), Product.of(spec, project.root)
    assert product is not None
    mosaic = imagery.mosaics["epsg32650"]
    image = {}
    for number in range(3):
        image[number] = pixels_under(
            tile, mosaic.grid, mosaic.window, project.image_CHW[number], mosaic.fill
        )
    rgba = imagery.tile("imagery", tile)
    inside = image[0] != mosaic.fill
    assert inside.any()
    assert ((rgba[..., 3] == 255) != inside).sum() <= ON_EDGE
    for number in range(3):
        # brighter numbers are never darker on the screen
        order = np.argsort(image[number][inside], kind="stable")
        assert (np.diff(rgba[..., number][inside][order].astype(int)) >= -1).mean() > 0.999
    with rasterio.open(project.root / "product.tif") as file:
        stored = file.read(1)
    codes = product.raster.crosswalk.apply(stored, where="product")
    expected_HW = pixels_under(tile, product.raster.grid, product.raster.window, codes, 0)
    assert (product.tile(tile) != expected_HW).sum() <= ON_EDGE


def test_a_whole_scene_is_seen_thinned(project: scenes.Project) -> None:
    spec, near, far = load_spec(project.spec), over_project(16), over_project(12)
    imagery = Imagery.of(spec, project.root)
    seen = imagery.tile("imagery", far)
    expected = pixels_under(
        far,
        imagery.mosaics["epsg32650"].grid,
        imagery.mosaics["epsg32650"].window,
        np.ones((scenes.SIZE, scenes.SIZE), np.uint8),
        0,
    )
    # thinned pixels are wide, so that its edge may be off by one of the tile's
    assert abs(int((seen[..., 3] > 0).sum()) - int(expected.sum())) <= 4 * 16
    assert (imagery.tile("imagery", near)[..., 3] > 0).any()
    assert not imagery.tile("imagery", Tile(12, 0, 0)).any()


def test_a_pixel_is_explained_with_product_and_imagery(
    project: scenes.Project, tmp_path: Path
) -> None:
    spec = load_spec(project.spec)
    mosaic = Imagery.of(spec, project.root).mosaics["epsg32650"]
    plan = Plan("epsg32650", mosaic.grid, mosaic.window.snapped(64), 64, ())
    window = plan.extent
    store = MapStore.create(tmp_path / "m", [plan], SEVEN)
    with store.run(
        [Plan(plan.zone, plan.grid, window, 64, tuple(window.tiles(64)))],
        model="m" * 64, spec="s", scenes=["summer"], mapping={},
    ) as run:  # fmt: skip
        for zone, place in run.todo():
            codes = np.full(place.shape, 5, np.uint8)
            run.accept(
                run.target.write(zone, ShardResult(place, codes, codes, codes.astype("u2") // 5))
            )
        run.commit()
    store.release("first", run.name)
    atlas = Atlas(
        MapReader(tmp_path / "m"),
        imagery=Imagery.of(spec, project.root),
        product=Product.of(spec, project.root),
    )
    row, col = 70, 90
    x, y = scenes.TRANSFORM @ (col + 0.5, row + 0.5)
    lon, lat = rasterio.warp.transform(scenes.CRS, "EPSG:4326", [x], [y])
    told = atlas.pixel("main", lon[0], lat[0])

    assert told is not None
    assert (told["class"], told["confidence"], told["scene"]) == ("impervious", 5, "summer")
    assert (told["model"], told["releases"]) == ("m" * 64, ["first"])
    assert list(told["values"].values()) == project.image_CHW[:, row, col].tolist()
    assert told["product"]["class"] in SEVEN.names
    assert (told["x"], told["y"]) == pytest.approx((x, y), abs=1e-6)
    assert atlas.pixel("main", 0.0, 0.0) is None
