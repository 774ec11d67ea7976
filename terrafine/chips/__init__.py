"""The chip store: built from scenes and a label product, split, filtered and sampled."""

from terrafine.chips.agreement import agreement
from terrafine.chips.build import build_chips
from terrafine.chips.split import OVERLAP, TRAIN, VALIDATION
from terrafine.chips.statistics import band_statistics
from terrafine.chips.store import ChipStore, open_chips

__all__ = [
    "OVERLAP",
    "TRAIN",
    "VALIDATION",
    "ChipStore",
    "agreement",
    "band_statistics",
    "build_chips",
    "open_chips",
]
