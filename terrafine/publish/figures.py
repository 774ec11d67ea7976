"""Arrays as pictures: band stretch, legend colours, confidence ramp, PNG bytes and data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from terrafine.legend import NO_CLASS, UNWRITTEN, Legend, UInt8Array

UInt16Array = npt.NDArray[np.uint16]

# Highest confidence in percent; what lies above (255) was never written.
FULL_CONFIDENCE = 100

# Band names in the order red, green, blue as the screen shows them.
TRUE_COLOUR = ("red", "green", "blue")
FALSE_COLOUR = ("nir", "red", "green")


@dataclass(frozen=True)
class Stretch:
    """Raw values shown black and white, one pair per displayed band."""

    low: tuple[float, ...]
    high: tuple[float, ...]


def display_bands(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, int, int] | None:
    """Indexes of the ``wanted`` bands (any case) in ``names``, or None when one is not there."""
    lower = [name.lower() for name in names]
    if not all(band in lower for band in wanted):
        return None
    red, green, blue = (lower.index(band) for band in wanted)
    return red, green, blue


def valid_pixels(image_CHW: UInt16Array, fill: int) -> npt.NDArray[np.bool_]:
    """(H, W) bool: pixels where no band equals ``fill``."""
    valid: npt.NDArray[np.bool_] = (image_CHW != fill).all(axis=0)
    return valid


def stretch_of(
    image_CHW: UInt16Array, fill: int, bands: Sequence[int], percent: tuple[float, float] = (2, 98)
) -> Stretch:
    """The ``percent`` percentiles of every band over its valid pixels (0..1 where none is)."""
    valid = valid_pixels(image_CHW, fill)
    if not valid.any():
        return Stretch((0.0,) * len(bands), (1.0,) * len(bands))
    pairs = [np.percentile(image_CHW[band][valid], percent) for band in bands]
    return Stretch(
        tuple(float(low) for low, _ in pairs),
        tuple(float(max(high, low + 1)) for low, high in pairs),
    )


def render_image(
    image_CHW: UInt16Array, fill: int, bands: Sequence[int], stretch: Stretch
) -> UInt8Array:
    """(H, W, 4) uint8 RGBA of three bands; missing pixels are transparent."""
    valid = valid_pixels(image_CHW, fill)
    rgba = np.zeros((*valid.shape, 4), np.uint8)
    for channel, band in enumerate(bands):
        low, high = stretch.low[channel], stretch.high[channel]
        scaled = (image_CHW[band].astype(np.float32) - low) / (high - low)
        rgba[..., channel] = np.round(255 * scaled.clip(0, 1))
    rgba[..., 3] = 255
    rgba[~valid] = 0
    return rgba


def class_palette(legend: Legend) -> UInt8Array:
    """(256, 4) uint8 RGBA: code -> the legend's colour; what is no class is transparent.

    No two classes share a colour, so that a page can tell the class from the picture: where a
    legend gives a colour twice, the later class's blue is off by one, which no eye sees.
    """
    return _told_apart(legend.color_table.copy(), legend.codes)


def confidence_palette() -> UInt8Array:
    """(256, 4) uint8 RGBA: percent 0..100 -> dark blue to yellow (cividis, safe for all eyes)."""
    from matplotlib import colormaps  # slow to import, and only the report needs it

    table = np.zeros((256, 4), np.uint8)
    steps = np.linspace(0, 1, FULL_CONFIDENCE + 1)
    table[: FULL_CONFIDENCE + 1] = colormaps["cividis"](steps, bytes=True)
    return _told_apart(table, range(FULL_CONFIDENCE + 1))


def hide_where_unmapped(confidence_HW: UInt8Array, map_HW: UInt8Array) -> UInt8Array:
    """Confidence with 255 where the map has no class (a 0 there says nothing about a class)."""
    unmapped = (map_HW == NO_CLASS) | (map_HW == UNWRITTEN)
    return np.where(unmapped, np.uint8(UNWRITTEN), confidence_HW)


def paint_points(
    shape: tuple[int, int],
    rows: npt.NDArray[np.integer],
    cols: npt.NDArray[np.integer],
    codes: UInt8Array,
    *,
    side: int | None = None,
) -> UInt8Array:
    """(H, W) uint8: reference points as squares of their class code on 0, for a panel.

    ``rows``, ``cols``: (n,) pixels, those outside ``shape`` are left out; ``side``: pixels a side
    of a square, default 1/120 of the longer side of ``shape`` and at least 3.
    """
    height, width = shape
    half = (side or max(3, max(shape) // 120)) // 2
    panel = np.zeros(shape, np.uint8)
    for row, col, code in zip(rows.tolist(), cols.tolist(), codes.tolist(), strict=True):
        if 0 <= row < height and 0 <= col < width:
            panel[max(row - half, 0) : row + half + 1, max(col - half, 0) : col + half + 1] = code
    return panel


def colour(codes_HW: UInt8Array, palette: UInt8Array) -> UInt8Array:
    """(H, W, 4) uint8 RGBA of codes through a (256, 4) palette."""
    rgba: UInt8Array = palette[codes_HW]
    return rgba


def palette_png(codes_HW: UInt8Array, palette: UInt8Array, *, optimize: bool = True) -> bytes:
    """PNG bytes of codes with a (256, 4) RGBA palette; one byte a pixel before compression.

    ``optimize``: a little smaller, ten times slower.
    """
    picture = Image.fromarray(np.ascontiguousarray(codes_HW), mode="L")
    picture.putpalette(palette[:, :3].tobytes(), "RGB")
    return _encoded(picture, "PNG", optimize=optimize, transparency=palette[:, 3].tobytes())


def rgba_png(rgba_HW4: UInt8Array) -> bytes:
    """Lossless PNG bytes of an (H, W, 4) uint8 picture."""
    return _encoded(Image.fromarray(np.ascontiguousarray(rgba_HW4), mode="RGBA"), "PNG")


def rgba_webp(rgba_HW4: UInt8Array, quality: int) -> bytes:
    """Lossy WebP bytes of an (H, W, 4) uint8 picture; transparency stays exact."""
    picture = Image.fromarray(np.ascontiguousarray(rgba_HW4), mode="RGBA")
    return _encoded(picture, "WEBP", quality=quality, alpha_quality=100, method=4)


def data_uri(picture: bytes) -> str:
    """``data:image/...;base64,...`` of PNG or WebP bytes."""
    kind = "png" if picture.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _told_apart(table: UInt8Array, codes: Sequence[int]) -> UInt8Array:
    """``table`` with the blue of later ``codes`` moved until no two of them share a colour."""
    seen: set[bytes] = set()
    for code in codes:
        step = 1 if table[code, 2] < 128 else -1
        while table[code, :3].tobytes() in seen:
            table[code, 2] = int(table[code, 2]) + step
        seen.add(table[code, :3].tobytes())
    return table
