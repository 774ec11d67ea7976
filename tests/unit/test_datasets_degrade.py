"""The made-up coarse product: errs as often, and between the same classes, as the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from terrafine.accuracy.published import DONG_PRODUCT_10M
from terrafine.datasets import coarse_product, confuse
from terrafine.errors import DatasetError
from terrafine.geometry import Window
from terrafine.legend import CROSSWALKS, FBP, SEVEN
from terrafine.raster import majority, open_class_raster
from terrafine.spec import LabelSource
from tests.scenes import make_project

PRODUCERS_ACCURACY = np.diag(DONG_PRODUCT_10M) / DONG_PRODUCT_10M.sum(axis=0)


def landscape(size: int = 400, cell: int = 5) -> np.ndarray:
    """Classes 1..6 in squares, some without a class."""
    cells = np.random.default_rng(7).choice(
        [0, 1, 2, 3, 4, 5, 6], (size // cell, size // cell), p=[0.05, *[0.95 / 6] * 6]
    )
    return cells.repeat(cell, axis=0).repeat(cell, axis=1).astype(np.uint8)


def confused(labels_HW: np.ndarray, *, patch: int = 8, seed: int = 0) -> np.ndarray:
    return confuse(labels_HW, DONG_PRODUCT_10M, legend=SEVEN, patch=patch, seed=seed)


def test_the_product_is_as_right_as_the_matrix_says() -> None:
    labels_HW = landscape()
    shares = np.array([(labels_HW == code).sum() for code in SEVEN.codes]) / (labels_HW > 0).sum()
    implied = float(shares @ PRODUCERS_ACCURACY)
    found = []
    for seed in range(8):
        product_HW = confused(labels_HW, seed=seed)
        found.append(float((product_HW == labels_HW)[labels_HW > 0].mean()))
        assert found[-1] == pytest.approx(implied, abs=0.03)
    assert np.mean(found) == pytest.approx(implied, abs=0.008)
    assert len(set(found)) == 8, "every seed is another product"


def test_classes_are_confused_as_the_matrix_says() -> None:
    labels_HW = landscape()
    counts = np.zeros((7, 7))
    for seed in range(8):
        product_HW = confused(labels_HW, seed=seed)
        known = labels_HW > 0
        np.add.at(counts, (product_HW[known] - 1, labels_HW[known] - 1), 1)
    assert counts[:, 6].sum() == 0, "the landscape has no snow"
    rates = counts[:, :6] / counts[:, :6].sum(axis=0)
    published = (DONG_PRODUCT_10M / DONG_PRODUCT_10M.sum(axis=0))[:, :6]
    assert np.abs(rates - published).max() < 0.02


def test_errors_come_in_patches() -> None:
    labels_HW = np.where(np.indices((96, 96)).sum(axis=0) % 2, 1, 3).astype(np.uint8)
    product_HW = confused(labels_HW, patch=12)
    for code in (1, 3):
        for row in range(0, 96, 12):
            for col in range(0, 96, 12):
                patch = np.s_[row : row + 12, col : col + 12]
                drawn = np.unique(product_HW[patch][labels_HW[patch] == code])
                assert len(drawn) == 1, "one draw per class and patch"


def test_what_has_no_class_keeps_none_and_the_seed_decides() -> None:
    labels_HW = landscape(200)
    product_HW = confused(labels_HW, seed=3)
    assert ((product_HW == 0) == (labels_HW == 0)).all()
    assert (product_HW == confused(labels_HW, seed=3)).all()
    perfect = confuse(labels_HW, np.eye(7, dtype=np.int64), legend=SEVEN, patch=8, seed=3)
    assert (perfect == labels_HW).all()


def test_a_matrix_must_fit_the_legend() -> None:
    with pytest.raises(DatasetError, match=r"\(7, 7\) cannot confuse the 24 classes"):
        confuse(landscape(), DONG_PRODUCT_10M, legend=FBP, patch=8, seed=0)
    empty = DONG_PRODUCT_10M.copy()
    empty[:, 3] = 0
    with pytest.raises(DatasetError, match="no empty column"):
        confuse(landscape(), empty, legend=SEVEN, patch=8, seed=0)


def test_the_product_is_a_map_of_from_glc10_codes_in_its_place(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    source = LabelSource(file="reference.tif", crosswalk="seven")
    made = coarse_product(source, tmp_path, tmp_path / "coarse.tif", patch=4, seed=2)
    with rasterio.open(made.path) as file:
        assert file.res == pytest.approx((10.0, 10.0))
        assert file.crs.to_epsg() == 32650
        assert file.nodata == 0
        assert set(np.unique(file.read(1))) <= set(CROSSWALKS["FROM-GLC10"].mapping) | {0}
        with rasterio.open(tmp_path / "reference.tif") as reference:
            assert (file.bounds.left, file.bounds.top) == pytest.approx(
                (reference.bounds.left, reference.bounds.top)
            )
    # through the paper's crosswalk it is the confused majority map again
    read = open_class_raster(LabelSource(file="coarse.tif"), SEVEN, tmp_path)
    origin = open_class_raster(source, SEVEN, tmp_path)
    majority_HW, _, _ = majority(project.truth_HW, origin.grid, origin.window, 10 / 3)
    expected_HW = confuse(majority_HW, DONG_PRODUCT_10M, legend=SEVEN, patch=4, seed=2)
    product_HW = read.read(read.grid, read.window)
    assert (product_HW == expected_HW).all()
    assert made.agreement == pytest.approx((product_HW == majority_HW).mean())
    # and lies on the imagery where it should
    near_HW = read.read(origin.grid, Window(origin.window.row, origin.window.col, 10, 10))
    assert (near_HW == product_HW[:3, :3][np.ix_(*[np.arange(10) * 3 // 10] * 2)]).all()


def test_the_product_needs_the_seven_classes(tmp_path: Path) -> None:
    make_project(tmp_path)
    source = LabelSource(file="reference.tif", crosswalk="fbp")
    with pytest.raises(DatasetError, match=r"FROM-GLC10 has no code for .* of legend 'fbp'"):
        coarse_product(
            source,
            tmp_path,
            tmp_path / "coarse.tif",
            legend=FBP,
            matrix=np.eye(24, dtype=np.int64),
        )
    assert not (tmp_path / "coarse.tif").exists()
