"""Scenes: the fine imagery, read window by window as uint16 in the sensor's own numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import MaskFlags

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.raster.files import crs_of, file_window, opened, placement, require_raster
from terrafine.spec import ImagerySpec, SceneSpec, resolve_in

UInt16Array = npt.NDArray[np.uint16]

DEFAULT_FILL = 65535
_MAX = 65535


@dataclass(frozen=True)
class _BandFile:
    """One file of a scene and the bands read from it."""

    path: Path
    indexes: tuple[int, ...]
    nodata: float | None


@dataclass(frozen=True)
class Scene:
    """One scene on its pixel grid; nothing is read before :meth:`read`.

    ``window``: where it lies, in the grid's global pixel numbers. ``fill``: the uint16 that marks
    missing pixels. ``bands``: how many there are, in the spec's order.
    """

    name: str
    grid: PixelGrid
    window: Window
    fill: int
    bands: int
    scale: float
    files: tuple[_BandFile, ...]

    def read(self, window: Window) -> UInt16Array:
        """image_CHW uint16 of ``window``: stored values times ``scale``, rounded.

        Outside the scene and where the file says nodata: ``fill``. A valid pixel whose value
        happens to be ``fill`` is a missing pixel. RasterError names file, band, row, column and
        value of a number that fits no uint16 (NaN, negative, too large, or not whole at scale 1).
        """
        image_CHW = np.full((self.bands, *window.shape), self.fill, np.uint16)
        part = window.intersection(self.window)
        if part is None:
            return image_CHW
        rows, cols = part.slices(within=window)
        band = 0
        for file in self.files:
            stored_CHW, missing_CHW = _read(file, part, self.window)
            for index, stored_HW, missing_HW in zip(
                file.indexes, stored_CHW, missing_CHW, strict=True
            ):
                place = _Place(
                    file.path, index, part.row - self.window.row, part.col - self.window.col
                )
                image_CHW[band, rows, cols] = _to_uint16(
                    stored_HW, missing_HW, fill=self.fill, scale=self.scale, place=place
                )
                band += 1
        return image_CHW

    def on_grid(self, grid: PixelGrid) -> Scene:
        """The same scene numbered on another scene's grid; RasterError when it does not fit it."""
        transform = self.grid.transform(self.window)
        where = f"scene {self.name} ({self.files[0].path})"
        return replace(
            self, grid=grid, window=grid.window(transform, self.window.shape, where=where)
        )


def open_scene(scene: SceneSpec, imagery: ImagerySpec, root: Path) -> Scene:
    """Check a scene's files and say where it lies.

    RasterError when a file is missing, cut off or no raster, has the wrong number of bands or no
    CRS (``imagery.crs`` overrides), or when single-band files lie on different grids.
    """
    paths = [resolve_in(root, name) for name in scene.files]
    for path in paths:
        require_raster(path)
    indexes = _band_indexes(scene, imagery, paths)
    files = []
    place: tuple[PixelGrid, Window] | None = None
    for path in paths:
        where = f"scene {scene.name} ({path})"
        with opened(path) as dataset:
            _require_bands(dataset, indexes, imagery, where)
            crs = crs_of(dataset, imagery.crs, where=where, key="imagery.crs")
            found = placement(dataset, crs, where=where)
            if place is not None and found != place:
                raise RasterError(
                    f"{where}: lies on another grid than {paths[0].name} "
                    f"({_say(found)}, not {_say(place)}); warp the bands of one scene onto one grid"
                )
            place = found
            stated = dataset.nodatavals[indexes[0] - 1]
        nodata = imagery.nodata if imagery.nodata is not None else stated
        files.append(_BandFile(path, indexes, nodata))
    assert place is not None  # the spec demands at least one file
    return Scene(
        name=scene.name,
        grid=place[0],
        window=place[1],
        fill=_fill(files[0].nodata),
        bands=len(imagery.bands),
        scale=imagery.scale,
        files=tuple(files),
    )


def _band_indexes(scene: SceneSpec, imagery: ImagerySpec, paths: list[Path]) -> tuple[int, ...]:
    """1-based bands to read from every file of the scene."""
    wanted = len(imagery.bands)
    if len(paths) == 1:
        indexes = scene.band_indexes or tuple(range(1, wanted + 1))
        if len(indexes) != wanted:
            raise RasterError(
                f"scene {scene.name}: band_indexes {list(indexes)} names {len(indexes)} bands, "
                f"imagery.bands names {wanted} ({', '.join(imagery.bands)}); make them match"
            )
        return indexes
    if scene.band_indexes is not None:
        raise RasterError(
            f"scene {scene.name}: band_indexes goes with one multi-band file, not with "
            f"{len(paths)} files; leave it out"
        )
    if len(paths) != wanted:
        raise RasterError(
            f"scene {scene.name}: wrong number of bands: {len(paths)} files "
            f"({', '.join(p.name for p in paths)}) for {wanted} bands "
            f"({', '.join(imagery.bands)}); give one multi-band file, or one file per band"
        )
    return (1,)


def _require_bands(
    dataset: Any, indexes: tuple[int, ...], imagery: ImagerySpec, where: str
) -> None:
    single = len(imagery.bands) > 1 and indexes == (1,)
    if max(indexes) > dataset.count or (single and dataset.count != 1):
        wanted = "one band per file" if single else f"band {max(indexes)}"
        raise RasterError(
            f"{where}: wrong number of bands: it has {dataset.count}, {wanted} is needed for "
            f"{', '.join(imagery.bands)}; correct the file, scenes.band_indexes or imagery.bands"
        )
    for index in indexes:
        dtype = dataset.dtypes[index - 1]
        if np.dtype(dtype).kind not in "uif":
            raise RasterError(
                f"{where}: band {index} holds {dtype}, not real numbers; convert it to uint16"
            )


def _fill(nodata: float | None) -> int:
    """The nodata value where a uint16 can hold it, else 65535."""
    if nodata is not None and 0 <= nodata <= _MAX and nodata == math.floor(nodata):
        return int(nodata)
    return DEFAULT_FILL


def _say(place: tuple[PixelGrid, Window]) -> str:
    grid, window = place
    t = grid.transform(window)
    return (
        f"{window.width} x {window.height} pixels of {grid.dx:g} x {grid.dy:g} at "
        f"{t.c:.2f} {t.f:.2f} in {grid.crs[:40]}"
    )


def _read(
    file: _BandFile, part: Window, whole: Window
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Stored values (bands, H, W) of ``part`` and where they are nodata."""
    with opened(file.path) as dataset:
        window = file_window(part, whole)
        stored = dataset.read(list(file.indexes), window=window)
        flags = dataset.mask_flag_enums[file.indexes[0] - 1]
        # An alpha band is left alone: GDAL takes the fourth band of many RGB + NIR files for one.
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            missing = dataset.read_masks(list(file.indexes), window=window) == 0
        else:
            missing = np.zeros(stored.shape, bool)
    if file.nodata is not None:
        missing |= np.isnan(stored) if math.isnan(file.nodata) else stored == file.nodata
    return stored, missing


@dataclass(frozen=True)
class _Place:
    path: Path
    band: int
    row: int
    col: int


def _to_uint16(
    stored: npt.NDArray[Any],
    missing: npt.NDArray[np.bool_],
    *,
    fill: int,
    scale: float,
    place: _Place,
) -> UInt16Array:
    """Stored values to the sensor's numbers (H, W); see :meth:`Scene.read`."""
    if scale == 1 and stored.dtype == np.uint16:
        return np.where(missing, np.uint16(fill), stored)
    scaled = stored.astype(np.float64) * scale
    rounded = np.rint(scaled)
    wrong = ~((rounded >= 0) & (rounded <= _MAX))  # NaN compares false, so it is wrong too
    if scale == 1:
        wrong |= rounded != scaled
    wrong &= ~missing
    if wrong.any():
        _refuse(stored, scaled, wrong, scale, place)
    rounded[missing] = fill
    return rounded.astype(np.uint16)


def _refuse(
    stored: npt.NDArray[Any],
    scaled: npt.NDArray[np.float64],
    wrong: npt.NDArray[np.bool_],
    scale: float,
    place: _Place,
) -> None:
    row, col = (int(i) for i in np.argwhere(wrong)[0])
    value = float(stored[row, col])
    if not math.isfinite(value):
        remedy = "set imagery.nodata to the value of missing pixels (.nan for NaN)"
    elif not 0 <= round(float(scaled[row, col])) <= _MAX:
        remedy = (
            f"times scale {scale:g} it does not fit 0..65535: set imagery.nodata if it marks "
            "missing pixels, else imagery.scale"
        )
    else:
        remedy = (
            "it is not whole: set imagery.scale, for example 10000 for reflectances of 0..1 "
            "(training and mapping need the same scale)"
        )
    raise RasterError(
        f"{place.path}: band {place.band}, row {place.row + row}, column {place.col + col} holds "
        f"{value:g} ({int(wrong.sum())} such pixels in this window); {remedy}"
    )
