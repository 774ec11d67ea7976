"""terrafine: fine national land-cover maps from coarse products, without anyone labelling."""

__version__ = "0.1.0"
