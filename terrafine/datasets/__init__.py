"""Example data: fetching a real scene, and making a coarse label product for it."""

from terrafine.datasets.degrade import FACTOR, CoarseProduct, coarse_product, confuse
from terrafine.datasets.north_carolina import LICENCE_NOTICE, fetch

__all__ = ["FACTOR", "LICENCE_NOTICE", "CoarseProduct", "coarse_product", "confuse", "fetch"]
