"""Rasters as they look on another grid: nearest pixels, coarser ones when seen from far away."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.warp
from affine import Affine
from rasterio.enums import Resampling

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.raster.bandfile import BandFile, UInt16Array
from terrafine.raster.files import reading
from terrafine.raster.mosaic import Mosaic
from terrafine.raster.scene import Scene, as_found

# As in labels.py: exact, so that neighbouring pictures meet.
_TOLERANCE = 1e-6


def warp_nearest(
    pixels: npt.NDArray[Any],
    crs: str,
    transform: Affine,
    onto: PixelGrid,
    window: Window,
    *,
    fill: int,
) -> npt.NDArray[Any]:
    """(H, W) or (bands, H, W) pixels at ``window`` of another grid: each takes the nearest one.

    ``fill`` outside the pixels given.
    """
    out = np.full((*pixels.shape[:-2], *window.shape), fill, pixels.dtype)
    with reading(f"pixels in {crs[:40]}"):
        rasterio.warp.reproject(
            pixels,
            out,
            src_transform=transform,
            src_crs=crs,
            dst_transform=onto.transform(window),
            dst_crs=onto.crs,
            init_dest_nodata=False,
            resampling=Resampling.nearest,
            tolerance=_TOLERANCE,
        )
    return out


def look_at(mosaic: Mosaic, under: Window, onto: PixelGrid, window: Window) -> UInt16Array:
    """image_CHW uint16 of a mosaic at ``window`` of any grid, for the eye; ``mosaic.fill`` where
    nothing is.

    ``under``: the mosaic's pixels that may be seen there. They are read thinned to about the
    resolution that is shown, so that a whole scene is seen at the price of its overviews. A scene
    that cannot be read is left out.
    """
    image_CHW = np.full((mosaic.bands, *window.shape), mosaic.fill, np.uint16)
    step = max(1, min(under.height // window.height, under.width // window.width))
    for scene in mosaic.scenes_at(under):
        try:
            seen_CHW = _scene_at(as_found(scene), under, step, onto, window)
        except RasterError:
            continue
        missing_HW = (image_CHW == mosaic.fill).any(axis=0)
        np.copyto(image_CHW, seen_CHW, where=missing_HW & (seen_CHW != mosaic.fill).all(axis=0))
    return image_CHW


def _scene_at(
    scene: Scene, under: Window, step: int, onto: PixelGrid, window: Window
) -> UInt16Array:
    bounds = scene.grid.bounds(under)
    seen_CHW = np.full((scene.bands, *window.shape), scene.fill, np.uint16)
    band = 0
    for file in scene.files:
        thinned = _thinned(file, bounds, step)
        if thinned is not None:
            stored, missing, transform = thinned
            shown = _as_uint16(stored, missing, scale=scene.scale, fill=scene.fill)
            found = warp_nearest(shown, file.grid.crs, transform, onto, window, fill=scene.fill)
            seen_CHW[band : band + len(found)] = found
        band += len(file.indexes)
    if scene.mask is not None:
        thinned = _thinned(scene.mask.file, bounds, step)
        if thinned is not None:
            stored, _, transform = thinned
            cloudy = np.isin(stored[0], scene.mask.values).astype(np.uint8)
            crs = scene.mask.file.grid.crs
            seen_CHW[:, warp_nearest(cloudy, crs, transform, onto, window, fill=0) == 1] = (
                scene.fill
            )
    return seen_CHW


def _thinned(
    file: BandFile, bounds: tuple[float, float, float, float], step: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], Affine] | None:
    """What a file holds within bounds in its CRS, one pixel of ``step`` x ``step``, and where."""
    left, bottom, right, top = bounds
    row, col = file.grid.pixel_of(left, top)
    stop_row, stop_col = file.grid.pixel_of(right, bottom)
    asked = Window(row, col, stop_row - row + 1, stop_col - col + 1).buffered(1)
    part = asked.snapped(step).intersection(file.window)
    if part is None:
        return None
    stored, missing = file.thinned(part, step)
    height, width = stored.shape[-2:]
    scale = Affine.scale(part.width / width, part.height / height)
    return stored, missing, file.grid.transform(part) @ scale


def _as_uint16(
    stored: npt.NDArray[Any], missing: npt.NDArray[np.bool_], *, scale: float, fill: int
) -> UInt16Array:
    scaled = np.nan_to_num(stored.astype(np.float64)) * scale
    shown = np.rint(scaled).clip(0, 65535).astype(np.uint16)
    shown[missing] = fill
    return shown
