"""Mapping: windows on one global grid, inference, enhancement, decision, map store."""

from terrafine.mapping.decide import decide
from terrafine.mapping.enhance import clahe_mask
from terrafine.mapping.plan import Imagery, Plan
from terrafine.mapping.predictor import OnnxPredictor, Prediction, Predictor, TorchPredictor
from terrafine.mapping.reader import (
    Explanation,
    MapReader,
    Release,
    RunRecord,
    is_map_store,
    open_map,
)
from terrafine.mapping.run import MapOutcome, ShardRunner, in_sequence, map_all
from terrafine.mapping.shard import ShardJob, ShardResult, compute_shard
from terrafine.mapping.store import MapRun, MapStore

__all__ = [
    "Explanation",
    "Imagery",
    "MapOutcome",
    "MapReader",
    "MapRun",
    "MapStore",
    "OnnxPredictor",
    "Plan",
    "Prediction",
    "Predictor",
    "Release",
    "RunRecord",
    "ShardJob",
    "ShardResult",
    "ShardRunner",
    "TorchPredictor",
    "clahe_mask",
    "compute_shard",
    "decide",
    "in_sequence",
    "is_map_store",
    "map_all",
    "open_map",
]
