"""Band files: the stored numbers of one file, on its own pixels or on those of another grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import MaskFlags

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.raster.files import Place, crs_of, opened, placement
from terrafine.spec import ImagerySpec

UInt16Array = npt.NDArray[np.uint16]
Int64Array = npt.NDArray[np.int64]

_MAX = 65535


@dataclass(frozen=True)
class BandFile:
    """One file of a scene, the bands read from it and where it lies.

    ``nodata``: the spec's value of missing pixels, which the file's own goes with; None where only
    that counts. ``grid``, ``window``: the file's own.
    """

    path: Place
    indexes: tuple[int, ...]
    nodata: float | None
    grid: PixelGrid
    window: Window

    @classmethod
    def open(
        cls, path: Place, indexes: tuple[int, ...], imagery: ImagerySpec, *, where: str
    ) -> BandFile:
        """The file at ``path``; RasterError when it lacks a CRS, a place or one of the bands."""
        with opened(path) as dataset:
            for index in indexes:
                if index > dataset.count:
                    raise RasterError(
                        f"{where}: it has {dataset.count} bands, band {index} is asked for; "
                        "correct the file or the spec's band"
                    )
                dtype = dataset.dtypes[index - 1]
                if np.dtype(dtype).kind not in "uif":
                    raise RasterError(
                        f"{where}: band {index} holds {dtype}, not real numbers; convert it to "
                        "uint16"
                    )
            crs = crs_of(dataset, imagery.crs, where=where, key="imagery.crs")
            grid, window = placement(dataset, crs, where=where)
        return cls(path, indexes, imagery.nodata, grid, window)

    def stated_nodata(self) -> float | None:
        """The value of missing pixels: the spec's, else the file's."""
        if self.nodata is not None:
            return self.nodata
        with opened(self.path) as dataset:
            return _nodata(dataset, self.indexes)

    def descriptions(self) -> tuple[str, ...]:
        """What the file calls each of all its bands, "" where it says nothing."""
        with opened(self.path) as dataset:
            return tuple(said or "" for said in dataset.descriptions)

    def renumbered(self, grid: PixelGrid, *, where: str) -> BandFile:
        """The same file numbered on a grid whose pixels its own coincide with, else RasterError."""
        transform = self.grid.transform(self.window)
        return replace(
            self, grid=grid, window=grid.window(transform, self.window.shape, where=where)
        )

    def snapped(self, grid: PixelGrid) -> BandFile:
        """Numbered on ``grid`` where its pixels coincide with that grid's, else as it is."""
        try:
            return self.renumbered(grid, where="")
        except RasterError:
            return self

    def window_on(self, grid: PixelGrid) -> Window:
        """The pixels of ``grid``, which has the same CRS, whose centres lie in the file."""
        if grid == self.grid:
            return self.window
        left, bottom, right, top = self.grid.bounds(self.window)
        col, stop_col = (_first_centre(x - grid.x0, grid.dx) for x in (left, right))
        row, stop_row = (_first_centre(grid.y0 - y, grid.dy) for y in (top, bottom))
        return Window(row, col, stop_row - row, stop_col - col)

    def read(
        self, part: Window, grid: PixelGrid
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], Int64Array, Int64Array]:
        """Stored values (bands, H, W) of ``part`` of ``grid``, where they are nodata, and the
        file's row and column that every row and column came from.

        On another grid than the file's own, each pixel takes the value of the file's pixel that
        its centre lies in: one and the same, whichever window asks.
        """
        rows, cols = self._sources(part, grid)
        box = rasterio.windows.Window(
            int(cols[0]), int(rows[0]), int(cols[-1] - cols[0]) + 1, int(rows[-1] - rows[0]) + 1
        )
        with opened(self.path) as dataset:
            stored = dataset.read(list(self.indexes), window=box)
            missing = self._missing(dataset, stored, box)
        if grid != self.grid:
            pick = np.ix_(range(len(self.indexes)), rows - rows[0], cols - cols[0])
            stored, missing = stored[pick], missing[pick]
        return stored, missing, rows, cols

    def thinned(self, part: Window, step: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Every ``step``-th stored pixel or so (bands, ceil(H / step), ceil(W / step)) of ``part``
        of the file's own pixels, from its overviews where it has them, and where they are nodata.
        """
        row, col = part.row - self.window.row, part.col - self.window.col
        box = rasterio.windows.Window(col, row, part.width, part.height)
        shape = (len(self.indexes), *(-(-side // step) for side in part.shape))
        with opened(self.path) as dataset:
            stored = dataset.read(list(self.indexes), window=box, out_shape=shape)
            return stored, self._missing(dataset, stored, box)

    def _sources(self, part: Window, grid: PixelGrid) -> tuple[Int64Array, Int64Array]:
        if grid == self.grid:
            return (
                np.arange(part.row, part.stop_row) - self.window.row,
                np.arange(part.col, part.stop_col) - self.window.col,
            )
        left, _, _, top = self.grid.bounds(self.window)
        ys = grid.y0 - (np.arange(part.row, part.stop_row) + 0.5) * grid.dy
        xs = grid.x0 + (np.arange(part.col, part.stop_col) + 0.5) * grid.dx
        return (
            _holding((top - ys) / self.grid.dy, self.window.height),
            _holding((xs - left) / self.grid.dx, self.window.width),
        )

    def _missing(self, dataset: Any, stored: npt.NDArray[Any], box: Any) -> npt.NDArray[np.bool_]:
        flags = dataset.mask_flag_enums[self.indexes[0] - 1]
        missing = np.zeros(stored.shape, bool)
        stated = (self.nodata, _nodata(dataset, self.indexes))
        for nodata in {value for value in stated if value is not None}:
            missing |= np.isnan(stored) if math.isnan(nodata) else stored == nodata
        # An alpha band is left alone: GDAL takes the fourth band of many RGB + NIR files for one.
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            masks = dataset.read_masks(list(self.indexes), window=box, out_shape=stored.shape)
            missing |= masks == 0
        return np.asarray(missing)

    def read_uint16(
        self, part: Window, grid: PixelGrid, *, fill: int, scale: float
    ) -> UInt16Array | list[UInt16Array]:
        """The bands of ``part``: stored values times ``scale``, rounded, ``fill`` where missing.

        RasterError names file, band, row, column and value of a number that fits no uint16.
        """
        stored_CHW, missing_CHW, rows, cols = self.read(part, grid)
        if scale == 1 and stored_CHW.dtype == np.uint16:
            # most windows miss nothing, and looking is cheaper than copying
            if missing_CHW.any():
                np.copyto(stored_CHW, np.uint16(fill), where=missing_CHW)
            return stored_CHW
        bands = []
        for index, stored_HW, missing_HW in zip(self.indexes, stored_CHW, missing_CHW, strict=True):
            scaled = stored_HW.astype(np.float64) * scale
            rounded = np.rint(scaled)
            # NaN compares false, so it is wrong too
            wrong = ~((rounded >= 0) & (rounded <= _MAX))
            if scale == 1:
                wrong |= rounded != scaled
            wrong &= ~missing_HW
            if wrong.any():
                row, col = (int(i) for i in np.argwhere(wrong)[0])
                value, number = float(stored_HW[row, col]), float(scaled[row, col])
                raise RasterError(
                    f"{self.path}: band {index}, row {rows[row]}, column {cols[col]} holds "
                    f"{value:g} ({int(wrong.sum())} such pixels in this window); "
                    f"{_remedy(value, number, scale)}"
                )
            rounded[missing_HW] = fill
            bands.append(rounded.astype(np.uint16))
        return bands


def _remedy(value: float, scaled: float, scale: float) -> str:
    if not math.isfinite(value):
        return "set imagery.nodata to the value of missing pixels (.nan for NaN)"
    if not 0 <= round(scaled) <= _MAX:
        return (
            f"times scale {scale:g} it does not fit 0..65535: set imagery.nodata if it marks "
            "missing pixels, else imagery.scale"
        )
    return (
        "it is not whole: set imagery.scale, for example 10000 for reflectances of 0..1 "
        "(training and mapping need the same scale)"
    )


def _nodata(dataset: Any, indexes: tuple[int, ...]) -> float | None:
    nodata: float | None = dataset.nodatavals[indexes[0] - 1]
    return nodata


def _first_centre(offset: float, step: float) -> int:
    """Number of the first pixel whose centre does not lie before ``offset``."""
    return math.ceil(offset / step - 0.5 - 1e-9)


def _holding(offsets: npt.NDArray[np.floating[Any]], size: int) -> Int64Array:
    """Numbers of the pixels that lie so many pixels from the file's edge.

    The outermost may miss the file by a rounding error, or a coarser mask by a little more.
    """
    return np.asarray(np.floor(offsets + 1e-9).astype(np.int64).clip(0, size - 1))
