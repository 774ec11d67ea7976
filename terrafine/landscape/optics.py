"""What a satellite sees of the ground: reflectance with object effects and texture, then light,
haze, cloud, blur and noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from terrafine.landscape.cover import Cover
from terrafine.landscape.kinds import column, spectra_table
from terrafine.landscape.noise import Float32Array, fractal, normal, smooth, uniform
from terrafine.landscape.terrain import Terrain

UInt16Array = npt.NDArray[np.uint16]

NODATA = 0
# Red, green, blue, near infrared: how far "greener" moves the logarithm of each band.
_GREENER = np.array([-0.55, -0.10, -0.25, 0.75], np.float32)
# Vegetation's texture is stronger in the near infrared, where leaves are bright.
_TEXTURE = np.array([0.9, 0.9, 0.85, 1.1], np.float32)
# Path radiance, strongest in blue; reflectance times 10 000.
_HAZE = np.array([130.0, 220.0, 380.0, 60.0], np.float32)
_CLOUD = np.array([6200.0, 6300.0, 6500.0, 6400.0], np.float32)
# Sensor: blur of the optics in pixels, noise that grows with the signal.
_BLUR = 0.6
_NOISE_FLOOR, _NOISE_SHARE = 18.0, 0.018


@dataclass(frozen=True)
class Acquisition:
    """How one scene was taken.

    ``sun``: unit vector towards it (east, south, up). ``gain``: (4,) on every band. ``haze``: of
    the standard path radiance. ``cloud``: share of the scene under thin cloud.
    """

    sun: tuple[float, float, float]
    gain: Float32Array
    haze: float
    cloud: float


def draw_acquisition(rng: np.random.Generator) -> Acquisition:
    """A morning's sun from the south-east, a calibration some per cent off, more or less haze."""
    azimuth = np.radians(rng.uniform(115, 165))
    height = np.radians(rng.uniform(44, 60))
    return Acquisition(
        (
            float(np.cos(height) * np.sin(azimuth)),
            float(-np.cos(height) * np.cos(azimuth)),
            float(np.sin(height)),
        ),
        (np.exp(rng.normal(0, 0.03)) * np.exp(rng.normal(0, 0.012, 4))).astype(np.float32),
        float(rng.uniform(0.5, 1.1)),
        float(rng.uniform(0.03, 0.09)),
    )


def reflectance(cover: Cover, rng: np.random.Generator) -> Float32Array:
    """(4, H, W) surface reflectance times 10 000: spectra, object effects, texture."""
    shape = (cover.kind.shape[0], cover.kind.shape[1])
    seed = int(rng.integers(2**31))
    kind, thing = cover.kind, cover.thing
    bright = column("brightness")[kind] * normal(seed, 1, thing)
    green = column("greenness")[kind] * normal(seed, 2, thing)
    patches = 0.6 * smooth(shape, rng, sigma=7) + 0.8 * fractal(shape, rng, slope=1.1)
    green += column("patches")[kind] * patches
    bright += column("grain")[kind] * rng.standard_normal(shape, dtype=np.float32)
    bright += column("crowns")[kind] * _crowns(shape, rng)
    bright += column("rows")[kind] * _rows(cover, seed)
    bands = []
    table = spectra_table()
    for band in range(4):
        own = 0.015 * normal(seed, 3 + band, thing)
        log = _TEXTURE[band] * bright + _GREENER[band] * green + own
        bands.append(table[kind, band] * np.exp(log.clip(-1.5, 1.2)))
    return np.stack(bands).astype(np.float32)


def _crowns(shape: tuple[int, int], rng: np.random.Generator) -> Float32Array:
    """Crowns of 2..4 pixels, bright towards the sun and dark behind."""
    crowns = smooth(shape, rng, sigma=1.0) + 0.6 * smooth(shape, rng, sigma=2.2)
    lit = crowns - np.roll(crowns, (1, 1), (0, 1))
    return (0.45 * crowns + 0.75 * lit / max(float(lit.std()), 1e-6)).astype(np.float32)


def _rows(cover: Cover, seed: int) -> Float32Array:
    """Crop rows and tractor lanes across the parcel, a period of its own each."""
    period = 2.6 + 4 * uniform(seed, 9, cover.thing)
    return np.sin(2 * np.pi * cover.across / period).astype(np.float32)


def observe(
    ground: Float32Array, terrain: Terrain, taken: Acquisition, rng: np.random.Generator
) -> UInt16Array:
    """(4, H, W) uint16 image; a corner without data is 0 in all bands, all else at least 1."""
    shape = (ground.shape[1], ground.shape[2])
    light = _illumination(terrain, taken.sun)
    veil, shadow = _clouds(shape, taken, rng)
    bands = []
    for band in range(4):
        radiance = ground[band] * light * (1 - 0.5 * shadow)
        radiance = radiance * (1 - veil) + _CLOUD[band] * veil + taken.haze * _HAZE[band]
        blurred = cv2.GaussianBlur(radiance * taken.gain[band], (0, 0), _BLUR)
        noise = rng.standard_normal(shape, dtype=np.float32)
        bands.append(blurred + noise * (_NOISE_FLOOR + _NOISE_SHARE * blurred))
    image = np.round(np.stack(bands)).clip(1, 65535).astype(np.uint16)
    image[:, _corner(shape, rng)] = NODATA
    return image


def _illumination(terrain: Terrain, sun: tuple[float, float, float]) -> Float32Array:
    """Direct light by the angle to the sun, and a third of diffuse light."""
    east, south, up = sun
    length = np.sqrt(1 + terrain.gradient_x**2 + terrain.gradient_y**2)
    facing = (up - east * terrain.gradient_x - south * terrain.gradient_y) / length
    return np.asarray(0.33 + 0.67 * (facing / up).clip(0, 1.8), np.float32)


def _clouds(
    shape: tuple[int, int], taken: Acquisition, rng: np.random.Generator
) -> tuple[Float32Array, Float32Array]:
    """Thin cloud as an opacity of 0..0.3, and its shadow of 0..1 some way off."""
    field = fractal(shape, rng, slope=1.5)
    edge = float(np.quantile(field[::4, ::4], 1 - taken.cloud))
    veil = (0.25 * (field - edge)).clip(0, 0.3)
    away = max(8, shape[0] // 24)
    east, south, up = taken.sun
    shift = (round(-south / up * away), round(-east / up * away))
    shadow = (0.5 * np.roll(veil, shift, (0, 1))).astype(np.float32)
    return veil.astype(np.float32), shadow


def _corner(shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A triangle in one corner: the slanting edge of a satellite's strip."""
    height, width = shape
    rows, cols = np.indices(shape, dtype=np.float32)
    down, right = rng.integers(0, 2, 2)
    rows = height - 1 - rows if down else rows
    cols = width - 1 - cols if right else cols
    legs = rng.uniform(0.06, 0.22, 2)
    corner: npt.NDArray[np.bool_] = rows / (legs[0] * height) + cols / (legs[1] * width) < 1
    return corner
