"""What the ground is made of: the kinds within each class, their spectra and their texture.

Surface reflectance times 10 000 in red, green, blue, near infrared, of the orders one finds in
Planet and Sentinel-2 scenes. The classes overlap on purpose: a fallow field is a soil, a meadow a
crop, an orchard a wood, asphalt a dark soil, shallow water a wet field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from terrafine.landscape.noise import Float32Array
from terrafine.legend import SEVEN, UInt8Array


@dataclass(frozen=True)
class Kind:
    """One kind of ground.

    ``spectrum``: mean in R, G, B, NIR. ``brightness``, ``greenness``: sd between objects, the
    first of the logarithm of all bands, the second of a shift along "more NIR, less red".
    ``grain``, ``crowns``, ``rows``, ``patches``: sd of the logarithm within an object, from fine
    noise, tree crowns with shadows, crop rows, and patches of tens of metres.
    """

    name: str
    land: str
    spectrum: tuple[int, int, int, int]
    brightness: float = 0.12
    greenness: float = 0.10
    grain: float = 0.07
    crowns: float = 0.0
    rows: float = 0.0
    patches: float = 0.06


KINDS: Final = (
    Kind("green crop", "cropland", (500, 860, 430, 3850), 0.07, 0.06, rows=0.06),
    Kind("young crop", "cropland", (1080, 1150, 830, 2750), 0.07, 0.08, rows=0.10),
    Kind("ripe crop", "cropland", (1580, 1380, 840, 2750), 0.07, 0.06, rows=0.06),
    Kind("stubble", "cropland", (1780, 1450, 990, 2480), 0.08, 0.06, rows=0.06),
    Kind("ploughed", "cropland", (1250, 970, 720, 1600), 0.08, 0.05, rows=0.06),
    Kind("paddy", "cropland", (640, 830, 620, 1950), 0.09, 0.10, rows=0.06),
    Kind("greenhouse", "cropland", (2350, 2450, 2450, 3300), 0.10, 0.06, rows=0.12),
    Kind("orchard", "cropland", (680, 830, 500, 2900), 0.07, 0.07, crowns=0.12, rows=0.12),
    Kind("conifer", "woodland", (330, 470, 310, 1900), 0.08, 0.05, 0.05, crowns=0.22),
    Kind("broadleaf", "woodland", (430, 640, 350, 2950), 0.08, 0.06, 0.05, crowns=0.20),
    Kind("young wood", "woodland", (610, 770, 460, 2650), 0.07, 0.08, 0.05, crowns=0.13),
    Kind("open wood", "woodland", (820, 840, 590, 2250), 0.08, 0.08, 0.05, crowns=0.18),
    Kind("wet meadow", "grassland", (760, 1020, 610, 3100), 0.06, 0.06, patches=0.07),
    Kind("dry grass", "grassland", (1190, 1170, 800, 2300), 0.07, 0.06, patches=0.08),
    Kind("steppe", "grassland", (1430, 1270, 910, 2330), 0.07, 0.05, patches=0.09),
    Kind("scrub", "grassland", (930, 1010, 690, 2350), 0.06, 0.05, crowns=0.05, patches=0.07),
    Kind("clear water", "water", (260, 400, 440, 160), 0.15, 0.05, 0.02, patches=0.05),
    Kind("turbid water", "water", (850, 900, 680, 420), 0.14, 0.10, 0.02, patches=0.08),
    Kind("stream", "water", (520, 680, 500, 650), 0.16, 0.10, 0.04),
    Kind("asphalt", "impervious", (1000, 960, 900, 1180), 0.12, 0.03, 0.04),
    Kind("concrete", "impervious", (1900, 1820, 1700, 2080), 0.10, 0.03, 0.04),
    Kind("dark roof", "impervious", (900, 840, 800, 1200), 0.18, 0.05, 0.05),
    Kind("red roof", "impervious", (1900, 1150, 860, 1950), 0.12, 0.05, 0.05),
    Kind("bright roof", "impervious", (3100, 3100, 3100, 3400), 0.15, 0.03, 0.05),
    Kind("yard", "impervious", (1480, 1390, 1260, 1750), 0.12, 0.04, 0.06),
    Kind("sand", "bare land", (2600, 2200, 1700, 3000), 0.08, 0.03, 0.05, patches=0.08),
    Kind("soil", "bare land", (2020, 1550, 1070, 2400), 0.08, 0.04, 0.05, patches=0.07),
    Kind("rock", "bare land", (1620, 1470, 1240, 1900), 0.08, 0.03, 0.10, patches=0.08),
    Kind("dark scree", "bare land", (1120, 990, 830, 1350), 0.09, 0.03, 0.08, patches=0.08),
    Kind("gravel", "bare land", (2000, 1860, 1640, 2280), 0.08, 0.03, 0.06, patches=0.08),
    Kind("snow", "snow/ice", (7400, 7500, 7700, 6900), 0.06, 0.02, 0.02, patches=0.04),
    Kind("old snow", "snow/ice", (4500, 4600, 4800, 4200), 0.14, 0.02, 0.05, patches=0.10),
)

_NUMBER: Final = {kind.name: number for number, kind in enumerate(KINDS)}


def number_of(name: str) -> int:
    """The number that stands for a kind in an array."""
    return _NUMBER[name]


def land_table() -> UInt8Array:
    """(kinds,) uint8: kind number -> code of its class in the seven-class legend."""
    return np.array([SEVEN.code_of(kind.land) for kind in KINDS], np.uint8)


def spectra_table() -> Float32Array:
    """(kinds, 4) float32: kind number -> mean reflectance."""
    return np.array([kind.spectrum for kind in KINDS], np.float32)


def column(attribute: str) -> Float32Array:
    """(kinds,) float32: one of the spreads of every kind."""
    return np.array([getattr(kind, attribute) for kind in KINDS], np.float32)
