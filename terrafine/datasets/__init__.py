"""Example data: fetching a real scene, and making a coarse label product for it."""

from terrafine.datasets.degrade import (
    FACTOR,
    PATCH,
    CoarseProduct,
    coarse_product,
    confuse,
    glc10_codes,
)
from terrafine.datasets.north_carolina import LICENCE_NOTICE, fetch

__all__ = [
    "FACTOR",
    "LICENCE_NOTICE",
    "PATCH",
    "CoarseProduct",
    "coarse_product",
    "confuse",
    "fetch",
    "glc10_codes",
]
