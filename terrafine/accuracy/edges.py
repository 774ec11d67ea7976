"""Accuracy where it is hardest: the pixels beside an edge between two classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from terrafine.accuracy.samples import is_class
from terrafine.accuracy.sampling import RasterReference
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import NO_CLASS, UInt8Array

# Pixels from a true edge that count as beside it: 6 m at 3 m, less than one pixel of a 10-m product
EDGE_PIXELS = 2


@dataclass(frozen=True)
class NearEdges:
    """A raster reference that knows only the pixels within ``pixels`` of another class.

    Distance is that of the chessboard. What has no reference class makes no edge. Assess a map
    against it and every figure is that of the boundary zone.
    """

    reference: RasterReference
    pixels: int = EDGE_PIXELS

    def read(self, grid: PixelGrid, window: Window) -> UInt8Array:
        """(H, W) uint8 legend codes on ``grid``; 0 away from edges or without a reference."""
        around = window.buffered(self.pixels)
        codes_HW = self.reference.read(grid, around)
        known_HW = is_class(codes_HW)
        size = 2 * self.pixels + 1
        highest = maximum_filter(np.where(known_HW, codes_HW, 0), size)
        lowest = minimum_filter(np.where(known_HW, codes_HW, 255), size)
        near_HW = np.where(known_HW & (highest != lowest), codes_HW, NO_CLASS).astype(np.uint8)
        return near_HW[window.slices(around)]
