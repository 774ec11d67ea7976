"""The generated ground and its image: plausible in the things that mapping depends on."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import NearestCentroid

from terrafine.accuracy.published import DONG_PRODUCT_10M
from terrafine.landscape.cover import Cover, make_cover
from terrafine.landscape.kinds import KINDS, land_table, number_of
from terrafine.landscape.noise import fractal, mixed, normal, ranks, smooth, uniform
from terrafine.landscape.optics import NODATA, draw_acquisition, observe, reflectance
from terrafine.landscape.routes import STEP, Lattice
from terrafine.legend import SEVEN

SEEDS = (0, 1, 2)
CROP, WOOD, GRASS, WATER, IMPERVIOUS, BARE, SNOW = SEVEN.codes


@cache
def ground(seed: int) -> tuple[Cover, np.ndarray]:
    rng = np.random.default_rng(seed)
    cover = make_cover(384, rng)
    image = observe(reflectance(cover, rng), cover.terrain, draw_acquisition(rng), rng)
    return cover, image


def shares(seed: int) -> np.ndarray:
    truth = ground(seed)[0].truth
    return np.bincount(truth.ravel(), minlength=8)[1:8] / truth.size


@pytest.mark.parametrize("seed", SEEDS)
def test_every_class_has_about_its_share_of_the_papers_points(seed: int) -> None:
    paper = DONG_PRODUCT_10M.sum(axis=0) / DONG_PRODUCT_10M.sum()
    assert (shares(seed) > 0.002).all()
    assert np.abs(shares(seed) - paper).max() < 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_classes_lie_where_the_terrain_has_them(seed: int) -> None:
    cover, _ = ground(seed)
    height, steep = cover.terrain.height, cover.terrain.steepness
    assert height[cover.truth == SNOW].mean() > 0.9
    assert height[cover.truth == WATER].mean() < 0.4
    assert height[cover.truth == CROP].mean() < height[cover.truth == BARE].mean()
    assert steep[cover.truth == CROP].mean() < steep[cover.truth == WOOD].mean()
    assert cover.terrain.moisture[cover.truth == WOOD].mean() > 0.1 + (
        cover.terrain.moisture[cover.truth == BARE].mean()
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_features_narrower_than_a_cell_of_the_product_exist(seed: int) -> None:
    """Opening by 4 x 4 pixels takes away what is at most 9 m wide."""
    cover, _ = ground(seed)
    kernel = np.ones((4, 4), np.uint8)
    for code, least in ((WATER, 0.02), (IMPERVIOUS, 0.10), (WOOD, 0.01), (CROP, 0.005)):
        mask = (cover.truth == code).astype(np.uint8)
        narrow = mask.astype(bool) & ~cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel).astype(bool)
        assert narrow.sum() > least * mask.sum(), SEVEN.names[code - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_boundary_pixels_are_a_serious_share_but_not_most(seed: int) -> None:
    cover, _ = ground(seed)
    kernel = np.ones((3, 3), np.uint8)
    edge = cv2.erode(cover.truth, kernel) != cv2.dilate(cover.truth, kernel)
    assert 0.15 < edge.mean() < 0.4


def test_most_impervious_ground_hangs_together_by_roads() -> None:
    cover, _ = ground(0)
    roads = (cover.truth == IMPERVIOUS).astype(np.uint8)
    parts, _ = ndimage.label(roads, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    assert sizes.max() > 0.5 * sizes.sum()
    largest = parts == 1 + sizes.argmax()
    sides = (largest[0], largest[-1], largest[:, 0], largest[:, -1])
    assert sum(bool(side.any()) for side in sides) >= 2, "roads leave the scene"


def test_the_network_of_roads_joins_every_place() -> None:
    rng = np.random.default_rng(3)
    lattice = Lattice.of((0.2 + rng.random((30, 40))).astype(np.float32))
    places = sorted({int(cell) for cell in rng.integers(0, 1200, 12)})
    ways = lattice.network(places, loops=0.0)
    assert len(ways) == len(places) - 1, "a tree"
    reached, grew = {places[0]}, True
    while grew:
        found = {end for way in ways for end in (way[0], way[-1]) if {way[0], way[-1]} & reached}
        grew = not found <= reached
        reached |= found
    assert reached == set(places)
    for way in ways:
        rows, cols = np.divmod(np.array(way), 40)
        assert np.maximum(np.abs(np.diff(rows)), np.abs(np.diff(cols))).max() == 1, "no gap"


def test_paths_avoid_what_is_costly() -> None:
    cost = np.ones((9, 9), np.float32)
    cost[:8, 4] = 100  # a wall with a gap at its foot
    lattice = Lattice.of(cost)
    path = lattice.path(lattice.cell(0, 0), lattice.cell(0, 8.5 * STEP))
    assert 8 * 9 + 4 in path


@pytest.mark.parametrize("seed", SEEDS)
def test_spectra_of_neighbouring_classes_overlap(seed: int) -> None:
    """Neither class means nor a forest on single pixels come near the truth."""
    cover, image = ground(seed)
    valid = np.flatnonzero((image != NODATA).all(axis=0).ravel())
    rng = np.random.default_rng(0)
    chosen = rng.choice(valid, 12_000, replace=False)
    bands = np.log(image.reshape(4, -1)[:, chosen].T.astype(float))
    codes = cover.truth.ravel()[chosen]
    half = len(chosen) // 2
    means = NearestCentroid().fit(bands[:half], codes[:half]).score(bands[half:], codes[half:])
    assert 0.35 < means < 0.72
    forest = RandomForestClassifier(40, min_samples_leaf=3, random_state=0, n_jobs=1)
    found = forest.fit(bands[:half], codes[:half]).score(bands[half:], codes[half:])
    assert 0.70 < found < 0.87


def test_wood_is_rougher_than_grass_and_grass_than_water() -> None:
    cover, image = ground(1)
    nir = np.log(image[3].astype(np.float32).clip(1))
    rough = np.sqrt((nir - cv2.GaussianBlur(nir, (0, 0), 1.5)) ** 2)
    kernel = np.ones((7, 7), np.uint8)
    inside = cv2.erode(cover.truth, kernel) == cv2.dilate(cover.truth, kernel)
    valid = inside & (image != NODATA).all(axis=0)

    def of(*names: str) -> float:
        return float(rough[valid & np.isin(cover.kind, [number_of(n) for n in names])].mean())

    assert of("broadleaf", "conifer") > 1.3 * of("dry grass", "wet meadow")
    assert of("orchard", "young wood") > of("green crop", "wet meadow")


@pytest.mark.parametrize("seed", SEEDS)
def test_nodata_is_a_corner_and_nothing_else(seed: int) -> None:
    _, image = ground(seed)
    assert image.dtype == np.uint16
    missing = (image == NODATA).any(axis=0)
    assert (missing == (image == NODATA).all(axis=0)).all(), "all bands or none"
    assert 0.001 < missing.mean() < 0.04
    corners = (missing[0, 0], missing[0, -1], missing[-1, 0], missing[-1, -1])
    assert sum(map(bool, corners)) == 1
    _, pieces = ndimage.label(missing)
    assert pieces == 1
    values = image[:, ~missing]
    assert values.min() >= 1
    assert values.max() < 20_000, "reflectance times 10 000, snow and cloud included"


def test_two_scenes_of_one_country_differ_in_radiometry_but_not_by_much() -> None:
    rng = np.random.default_rng(0)
    cover, _ = ground(0)
    surface = reflectance(cover, rng)
    medians = []
    for _ in range(6):
        image = observe(surface, cover.terrain, draw_acquisition(rng), rng)
        medians.append(np.median(image[:, (image != NODATA).all(axis=0)], axis=1))
    spread = np.std(medians, axis=0) / np.mean(medians, axis=0)
    assert (spread > 0.005).all()
    assert (spread < 0.2).all()


def test_every_class_has_kinds_and_every_kind_a_class() -> None:
    assert set(land_table().tolist()) == set(SEVEN.codes)
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        assert all(0 < value < 10_000 for value in kind.spectrum)


def test_numbers_by_place_are_uniform_and_a_function_of_the_place() -> None:
    rows, cols = np.indices((300, 300))
    found = uniform(7, rows, cols)
    assert (found == uniform(7, rows, cols)).all()
    assert (uniform(8, rows, cols) != found).mean() > 0.99
    assert 0 <= found.min() <= found.max() < 1
    assert np.abs(np.histogram(found, 10, (0, 1))[0] / found.size - 0.1).max() < 0.005
    assert abs(np.corrcoef(found[:, 1:].ravel(), found[:, :-1].ravel())[0, 1]) < 0.02
    assert normal(1, rows, cols).std() == pytest.approx(1, abs=0.02)
    assert mixed(1, np.array([-1, 0])).shape == (2,)


def test_fields_have_the_correlation_they_are_asked_for() -> None:
    rng = np.random.default_rng(0)

    def correlation(field: np.ndarray, apart: int) -> float:
        return float(np.corrcoef(field[:, apart:].ravel(), field[:, :-apart].ravel())[0, 1])

    for sigma in (4.0, 20.0):
        field = smooth((400, 400), rng, sigma=sigma)
        assert field.std() == pytest.approx(1, abs=1e-3)
        # white noise blurred by sigma: exp(-d**2 / (4 sigma**2))
        assert correlation(field, int(2 * sigma)) == pytest.approx(np.exp(-1), abs=0.2)
    rough, even = fractal((256, 256), rng, slope=0.8), fractal((256, 256), rng, slope=2.0)
    assert correlation(rough, 4) < correlation(even, 4)
    assert np.abs(np.quantile(ranks(even), [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.01
