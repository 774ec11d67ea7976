"""One store, province after province and year after year: nothing is lost, the map is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.mapping import (
    Base,
    MapStore,
    Plan,
    ShardJob,
    ShardKey,
    ShardReceipt,
    difference,
    map_all,
    run_states,
    verify_sample,
)
from terrafine.mapping.run import WriteShard
from terrafine.publish import write_overviews
from terrafine.publish.export_cogs import export_cogs
from terrafine.raster import Region
from tests.imagery import ArrayImagery, QuickPredictor, small_spec, smooth
from tests.map_stores import region_of

SPEC = small_spec()
ZONE, NEXT = "epsg32650", "epsg32651"
GRIDS = {zone: PixelGrid(f"EPSG:{zone[4:]}", 3.0, 3.0, 0.0, 0.0) for zone in (ZONE, NEXT)}

Scenes = Mapping[str, Window]


def at(row: int, col: int, height: int, width: int) -> Window:
    """Near 117 degrees east, 40 degrees north, from the corner of a shard."""
    return Window(-1_466_688 + row, 166_656 + col, height, width)


def imagery_of(scenes: Scenes, zone: str = ZONE) -> ArrayImagery:
    """The first on top. A scene's pixels come from its name."""
    images = [
        (window, smooth(np.random.default_rng(list(name.encode())), window.height, window.width))
        for name, window in scenes.items()
    ]
    return ArrayImagery(images, zone=zone, grid=GRIDS[zone])


def map_scenes(
    path: Path,
    scenes: Scenes,
    release: str,
    *,
    region: Region | None = None,
    base: str | None = None,
    added: Sequence[str] = (),
    others: Mapping[str, ArrayImagery] | None = None,
) -> set[ShardKey]:
    """Map and release; the shards that were mapped."""
    asked: set[ShardKey] = set()

    def watched(shards: Sequence[ShardKey], write: WriteShard) -> Iterator[ShardReceipt]:
        asked.update(shards)
        yield from map(write, shards)

    new = {ZONE: imagery_of({name: scenes[name] for name in added})} if added else {}
    done = map_all(
        path,
        {ZONE: imagery_of(scenes), **(others or {})},
        partial(QuickPredictor, SPEC.window),
        spec=SPEC,
        legend=SEVEN,
        scenes=tuple(scenes),
        model_digest="m",
        spec_digest=f"{scenes} {region} {sorted(others or {})}",
        region=region,
        run=watched,
        base=None if base is None else Base(base, new),
    )
    MapStore(path).release(release, done.run)
    return asked


def assert_same_map(one: MapStore, other: MapStore, where: set[ShardKey]) -> None:
    for zone, shard in where:
        for array in ("landcover", "confidence"):
            np.testing.assert_array_equal(
                one.read(zone, shard, array), other.read(zone, shard, array), err_msg=str(shard)
            )


OLD = {"old": at(10, 10, 300, 380)}
# on top, and seen by the windows and blocks of nine shards
ALL = {"new": at(150, 150, 40, 20), **OLD}
WEST, EAST = (region_of(GRIDS[ZONE], at(70, *place)) for place in ((66, 180, 60), (130, 180, 120)))


@pytest.fixture
def from_nothing(tmp_path: Path) -> MapStore:
    map_scenes(tmp_path / "nothing", ALL, "all")
    return MapStore(tmp_path / "nothing")


def test_what_the_region_of_an_update_leaves_out_is_the_next_updates(tmp_path, from_nothing):
    path = tmp_path / "map"
    everything = map_scenes(path, OLD, "v1")
    west = map_scenes(path, ALL, "v2", base="v1", added=["new"], region=WEST)
    store = MapStore(path)
    left = store.stale("v2")
    assert (len(west), len(left)) == (3, 6)
    assert run_states(store)[-1].stale == 6
    # the new scene is one of v2's, so nothing is added any more
    east = map_scenes(path, ALL, "v3", base="v2", region=EAST)
    assert east == left
    assert MapStore(path).stale("v3") == set()
    assert_same_map(MapStore(path), from_nothing, everything)
    with pytest.raises(MapStoreError, match="no scene is new since release 'v3'"):
        map_scenes(path, ALL, "v4", base="v3")


def test_shards_left_out_twice_are_not_forgotten(tmp_path, from_nothing):
    path = tmp_path / "map"
    everything = map_scenes(path, OLD, "v1")
    map_scenes(path, ALL, "v2", base="v1", added=["new"], region=WEST)
    part = region_of(GRIDS[ZONE], at(70, 130, 50, 50))
    assert len(map_scenes(path, ALL, "v3", base="v2", region=part)) == 1
    assert len(MapStore(path).stale("v3")) == 5
    assert len(map_scenes(path, ALL, "v4", base="v3")) == 5
    assert_same_map(MapStore(path), from_nothing, everything)


def test_a_map_of_one_province_is_extended_by_the_next_and_by_all_the_rest(tmp_path, from_nothing):
    path = tmp_path / "map"
    west = map_scenes(path, ALL, "v1", region=WEST)
    east = map_scenes(path, ALL, "v2", base="v1", region=EAST)
    assert (len(west), len(east)) == (3, 6)
    assert not west & east
    store = MapStore(path)
    assert {(ZONE, shard) for shard in store.written(ZONE)} == west | east
    assert_same_map(store, from_nothing, west | east)
    rest = map_scenes(path, ALL, "v3", base="v2")
    assert not rest & (west | east)
    everything = {(ZONE, shard) for shard in from_nothing.written(ZONE)}
    assert rest | west | east == everything
    assert_same_map(MapStore(path), from_nothing, everything)


COUNTRY = region_of(GRIDS[ZONE], at(100, 100, 200, 300))
# a few clear scenes in the middle, then more than the country
YEAR_1 = {"first": at(150, 150, 60, 60)}
YEAR_2 = {"a": at(20, -100, 400, 300), "b": at(-90, 120, 500, 500)}


def test_another_years_scenes_of_the_same_region_go_into_the_same_store(tmp_path):
    path, own = tmp_path / "map", tmp_path / "own"
    map_scenes(path, YEAR_1, "2023", region=COUNTRY)
    second = map_scenes(path, YEAR_2, "2024", region=COUNTRY)
    assert map_scenes(own, YEAR_2, "2024", region=COUNTRY) == second
    store, alone = MapStore(path), MapStore(own)
    assert store.window(ZONE) != alone.window(ZONE), "each has the extent of its first scenes"
    run = store.provenance("2024").run
    assert store.accounts(run) == alone.accounts(alone.provenance("2024").run)
    assert store.planned("2024") == {(ZONE, s) for s in store.written(ZONE, "2024")} == second
    assert_same_map(store, alone, second)
    states = {state.releases: (state.planned, state.done) for state in run_states(store)}
    assert states["2024",] == (len(second), len(second))

    def again(key: ShardKey):
        predictor = QuickPredictor(SPEC.window)
        return ShardJob(imagery_of(YEAR_2), predictor, SPEC, SEVEN)(key[1])

    looked = list(verify_sample(store, run, again, shards=100, seed=1))
    assert len(looked) == len(second)
    assert not any(shard.differs or shard.damaged for shard in looked)

    for of in (store, alone):
        write_overviews(of, of.provenance("2024").run)
    coarse, _, around = store.overview(ZONE, 2, run)
    expected, _, other = alone.overview(ZONE, 2, alone.provenance("2024").run)
    both = around.intersection(other)
    np.testing.assert_array_equal(coarse[both.slices(around)], expected[both.slices(other)])
    assert (coarse != 255).sum() == (expected != 255).sum()

    found = difference(store, "2023", "2024", pixel_km2={ZONE: 9e-6})
    seen_before = store.read(ZONE, store.window(ZONE), ref="2023") != 255
    assert found.total.mapped == seen_before.sum()
    assert export_cogs(store, "2024", tmp_path / "out") == len(second)


def test_fewer_scenes_than_last_year_fit_without_a_region_and_more_ground_does_not(tmp_path):
    path = tmp_path / "map"
    map_scenes(path, YEAR_2, "2023")
    assert map_scenes(path, YEAR_1, "2024")
    beyond = {**YEAR_2, "edge": at(0, 600, 40, 90)}
    with pytest.raises(MapStoreError, match=r"beyond them, the first at row .*map\.region"):
        map_scenes(path, beyond, "2025")
    with pytest.raises(MapStoreError, match=r"beyond them, the first at row .*map\.region"):
        map_scenes(path, beyond, "2023b", base="2023", added=["edge"])
    inside = region_of(GRIDS[ZONE], at(70, 400, 100, 100))
    touched = {"edge": at(0, 430, 400, 400), **YEAR_2}
    assert map_scenes(path, touched, "2023c", base="2023", added=["edge"], region=inside)


def test_a_map_is_assessed_where_it_is_mapped_and_not_in_all_the_ground_it_has_room_for(tmp_path):
    map_scenes(tmp_path / "map", ALL, "v1", region=WEST)
    store, window = MapStore(tmp_path / "map"), at(20, 10, 280, 380)
    codes_HW = store.read(ZONE, window)[::20, ::20]
    rows, cols = (20 * index.ravel() + 0.5 for index in np.indices(codes_HW.shape))
    x, y = GRIDS[ZONE].transform(window) @ (cols, rows)
    reference = np.where(codes_HW == 255, 1, codes_HW).ravel().astype(int)
    points = geopandas.points_from_xy(x, y, crs=GRIDS[ZONE].crs)
    geopandas.GeoDataFrame({"class": reference}, geometry=points).to_file(tmp_path / "points.gpkg")
    words = ["assess", "--map", str(store.path), "--reference", str(tmp_path / "points.gpkg")]
    done = CliRunner().invoke(app, [*words, "--json"])
    found = json.loads(done.stdout)
    assert (found["samples"], found["unmapped"]) == ((codes_HW != 255).sum(), 0)
    assert (codes_HW == 255).any()


def around_120_east(zone: str, degrees: float) -> Window:
    forward = pyproj.Transformer.from_crs("EPSG:4326", GRIDS[zone].crs, always_xy=True)
    row, col = GRIDS[zone].pixel_of(*forward.transform(120 + degrees, 40.0))
    return Window(row - 60, col - 60, 120, 120)


def test_a_zone_of_the_region_where_only_another_year_has_scenes_is_there_already(tmp_path):
    border = Region(shapely.box(119.99, 39.995, 120.01, 40.005), "border.gpkg")
    west = {"west": around_120_east(ZONE, -0.004)}
    east = {NEXT: imagery_of({"east": around_120_east(NEXT, 0.004)}, NEXT)}
    first = map_scenes(tmp_path / "map", west, "2023", region=border)
    assert {zone for zone, _ in first} == {ZONE}
    store = MapStore(tmp_path / "map")
    assert store.zones() == (ZONE, NEXT)
    assert store.written(NEXT) == set()
    second = map_scenes(tmp_path / "map", west, "2024", region=border, others=east)
    assert {zone for zone, _ in second} == {ZONE, NEXT}
    map_scenes(tmp_path / "own", west, "2024", region=border, others=east)
    assert_same_map(MapStore(tmp_path / "map"), MapStore(tmp_path / "own"), second)


def test_the_extent_is_that_of_the_region_where_the_zone_is_used(tmp_path):
    """UTM is of no use far from its zone: a country of many zones is not in each of them whole."""
    scene = imagery_of(YEAR_1)
    country = Region(shapely.box(100, 39.9, 135, 40.1), "country.gpkg")
    extent = Plan.of(scene, SPEC, country).extent
    left, bottom, right, top = GRIDS[ZONE].bounds(extent)
    back = pyproj.Transformer.from_crs(GRIDS[ZONE].crs, "EPSG:4326", always_xy=True)
    (west, east), _ = back.transform([left, right], [(bottom + top) / 2] * 2)
    assert (west, east) == (pytest.approx(113, abs=0.01), pytest.approx(121, abs=0.01))
    assert extent.is_aligned(SPEC.shard)
