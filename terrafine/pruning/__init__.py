"""Pruning: filters nearest the geometric median are zeroed while training, then removed."""

from terrafine.pruning.median import median_distances, nearest_to_median
from terrafine.pruning.plan import Group, PruningPlan, plan_pruning
from terrafine.pruning.record import Cost, PrunedLayer, PrunedPart, PruningRecord, pruned_layers
from terrafine.pruning.remove import removed_channels, without_zeroed, zero_filters
from terrafine.pruning.trace import ChannelMap, trace_channels

__all__ = [
    "ChannelMap",
    "Cost",
    "Group",
    "PrunedLayer",
    "PrunedPart",
    "PruningPlan",
    "PruningRecord",
    "median_distances",
    "nearest_to_median",
    "plan_pruning",
    "pruned_layers",
    "removed_channels",
    "trace_channels",
    "without_zeroed",
    "zero_filters",
]
