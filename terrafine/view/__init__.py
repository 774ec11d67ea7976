"""The map in a browser: tiles, states and pixels of a map store, and the page that shows them."""

from terrafine.view.atlas import Atlas
from terrafine.view.backdrop import Imagery, Product
from terrafine.view.site import make_site

__all__ = ["Atlas", "Imagery", "Product", "make_site"]
