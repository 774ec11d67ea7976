"""Majority aggregation of a class map onto coarser pixels."""

from __future__ import annotations

import numpy as np
import rasterio.warp
from affine import Affine
from rasterio.enums import Resampling

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import NO_CLASS, UInt8Array


def majority(
    labels_HW: UInt8Array, grid: PixelGrid, window: Window, factor: float
) -> tuple[UInt8Array, PixelGrid, Window]:
    """The most frequent class within pixels ``factor`` times as large (any factor >= 1).

    Returns the coarse map (uint8 codes; 0 where only 0 was), its grid and its window. The upper
    left corner stays where it is; the last row and column may reach past the fine map.
    """
    fine = grid.transform(window)
    coarse = fine @ Affine.scale(factor)
    height, width = (int(np.ceil(n / factor - 1e-9)) for n in window.shape)
    product_HW = np.full((height, width), NO_CLASS, np.uint8)
    rasterio.warp.reproject(
        labels_HW,
        product_HW,
        src_transform=fine,
        dst_transform=coarse,
        src_crs=grid.crs,
        dst_crs=grid.crs,
        src_nodata=NO_CLASS,
        dst_nodata=NO_CLASS,
        resampling=Resampling.mode,
    )
    where = f"majority map of {factor:g} x {grid.dx:g}"
    coarse_grid = PixelGrid.from_transform(grid.crs, coarse, where=where)
    return product_HW, coarse_grid, coarse_grid.window(coarse, (height, width), where=where)
