"""A coarse, wrong label product made from a map, with the errors of the real 10-m product."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from terrafine.accuracy.published import DONG_PRODUCT_10M
from terrafine.errors import DatasetError
from terrafine.legend import CROSSWALKS, NO_CLASS, SEVEN, Legend, UInt8Array
from terrafine.raster import majority, open_class_raster, write_geotiff
from terrafine.spec import LabelSource

# A 10-m product seen from 3-m imagery.
FACTOR = 10 / 3
# Coarse pixels a side that err together: a field or a stand.
PATCH = 3


@dataclass(frozen=True)
class CoarseProduct:
    """What was made; ``agreement`` is the product's with the majority map, by coarse pixels."""

    path: Path
    agreement: float


def coarse_product(
    reference: LabelSource,
    root: Path,
    out: Path,
    *,
    legend: Legend = SEVEN,
    factor: float = FACTOR,
    matrix: npt.NDArray[np.int64] = DONG_PRODUCT_10M,
    patch: int = PATCH,
    seed: int = 0,
) -> CoarseProduct:
    """Make a coarse label product from a map of the imagery's resolution.

    The majority class of pixels ``factor`` times as large, confused patch by patch as ``matrix``
    says (:func:`confuse`), written to ``out`` as a GeoTIFF of FROM-GLC10's codes, so that the
    label stage goes through the paper's own crosswalk. The map is held in memory whole: one byte
    per pixel. RasterError / LegendError when the map cannot be used, DatasetError when ``matrix``
    does not fit the legend.
    """
    raster = open_class_raster(reference, legend, root)
    majority_HW, grid, window = majority(
        raster.read(raster.grid, raster.window), raster.grid, raster.window, factor
    )
    product_HW = confuse(majority_HW, matrix, legend=legend, patch=patch, seed=seed)
    labelled_HW = majority_HW != NO_CLASS
    write_geotiff(
        out,
        glc10_codes(legend)[product_HW],
        grid,
        window,
        nodata=0,
        legend=None,
        description="FROM-GLC10 codes",
        tags={"made": f"majority {factor:g} x, confused by patches of {patch}, seed {seed}"},
    )
    return CoarseProduct(out, float(np.mean((product_HW == majority_HW)[labelled_HW])))


def confuse(
    labels_HW: UInt8Array,
    matrix: npt.NDArray[np.int64],
    *,
    legend: Legend,
    patch: int,
    seed: int,
) -> UInt8Array:
    """Confuse classes as a product does: P(product | reference) from its confusion matrix.

    ``matrix``: rows mapped, columns reference, in the legend's order. Real products err by fields
    and stands rather than by single pixels: within a patch of ``patch`` x ``patch`` pixels all
    pixels of one class become the same class, drawn once. Code 0 stays 0. uint8 in and out; a
    function of its arguments.
    """
    classes = len(legend.classes)
    if matrix.shape != (classes, classes) or (matrix < 0).any() or (matrix.sum(axis=0) == 0).any():
        raise DatasetError(
            f"a confusion matrix of {matrix.shape} cannot confuse the {classes} classes of legend "
            f"{legend.name!r}; give one with a row and a column for each and no empty column"
        )
    cumulative = np.cumsum(matrix / matrix.sum(axis=0), axis=0)
    height, width = (-(-side // patch) for side in labels_HW.shape)
    draw = np.random.default_rng(seed).random((height, width, classes))
    # inverse of the distribution: the first mapped class whose cumulative share exceeds the draw
    drawn_HWK = (draw[..., None, :] >= cumulative).sum(axis=2).clip(max=classes - 1)
    rows, cols = np.nonzero(labels_HW != NO_CLASS)
    index = legend.index_table[labels_HW[rows, cols]]
    product_HW = np.full(labels_HW.shape, NO_CLASS, np.uint8)
    product_HW[rows, cols] = legend.code_table[drawn_HWK[rows // patch, cols // patch, index]]
    return product_HW


def glc10_codes(legend: Legend) -> UInt8Array:
    """(256,) legend code -> FROM-GLC10's first code for it; 0, its nodata, for 0."""
    table = np.zeros(256, np.uint8)
    for code, target in sorted(CROSSWALKS["FROM-GLC10"].mapping.items(), reverse=True):
        table[target] = code
    table[NO_CLASS] = 0
    missing = [
        name for code, name in zip(legend.codes, legend.names, strict=True) if not table[code]
    ]
    if missing:
        raise DatasetError(
            f"FROM-GLC10 has no code for {', '.join(missing)} of legend {legend.name!r}; "
            "make the product with the seven classes"
        )
    return table
