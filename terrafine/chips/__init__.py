"""The chip store: built from scenes and a label product, split, filtered and sampled."""

from terrafine.chips.agreement import agreement
from terrafine.chips.build import build_chips
from terrafine.chips.classes import require_classes
from terrafine.chips.record import GroupRecord
from terrafine.chips.runner import BuildGroup, BuildRunner, in_processes, in_turn, local_runner
from terrafine.chips.split import OVERLAP, TRAIN, VALIDATION
from terrafine.chips.statistics import band_statistics
from terrafine.chips.store import ChipStore, open_chips
from terrafine.chips.table import parquet

__all__ = [
    "OVERLAP",
    "TRAIN",
    "VALIDATION",
    "BuildGroup",
    "BuildRunner",
    "ChipStore",
    "GroupRecord",
    "agreement",
    "band_statistics",
    "build_chips",
    "in_processes",
    "in_turn",
    "local_runner",
    "open_chips",
    "parquet",
    "require_classes",
]
