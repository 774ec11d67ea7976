"""A landscape with known truth: fine imagery, the true map, and a product that errs as they do."""

from terrafine.landscape.folder import Landscape, Part, summary
from terrafine.landscape.generate import generate

__all__ = ["Landscape", "Part", "generate", "summary"]
