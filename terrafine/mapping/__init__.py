"""Mapping: windows on one global grid, inference, enhancement, decision, map store."""

from terrafine.mapping.decide import decide
from terrafine.mapping.diff import Change, Difference, difference
from terrafine.mapping.enhance import clahe_mask
from terrafine.mapping.estimate import Estimate, Resources, estimate
from terrafine.mapping.image import cut_for, map_image
from terrafine.mapping.place import Place, is_map_store
from terrafine.mapping.plan import Imagery, Plan, plan_all
from terrafine.mapping.predictor import (
    OnnxPredictor,
    OpenVinoPredictor,
    Prediction,
    Predictor,
    Served,
    TorchPredictor,
    local_predictor,
    open_torch,
    threads_of,
    windows_at_once,
)
from terrafine.mapping.reader import (
    Commit,
    Explanation,
    MapReader,
    Origin,
    Release,
    RunRecord,
    open_map,
)
from terrafine.mapping.run import MapOutcome, ShardRunner, in_sequence, map_all
from terrafine.mapping.shard import ShardJob, ShardResult, compute_shard
from terrafine.mapping.state import RunState, Verified, run_states, verify_sample
from terrafine.mapping.store import MapStore
from terrafine.mapping.update import Base, release_record, renumbered
from terrafine.mapping.watch import Figures, MapObserver, MapWatch
from terrafine.mapping.waves import MapAccount, MapRun
from terrafine.mapping.write import ShardAccount, ShardKey, ShardReceipt, ShardWriter, Target

__all__ = [
    "Base",
    "Change",
    "Commit",
    "Difference",
    "Estimate",
    "Explanation",
    "Figures",
    "Imagery",
    "MapAccount",
    "MapObserver",
    "MapOutcome",
    "MapReader",
    "MapRun",
    "MapStore",
    "MapWatch",
    "OnnxPredictor",
    "OpenVinoPredictor",
    "Origin",
    "Place",
    "Plan",
    "Prediction",
    "Predictor",
    "Release",
    "Resources",
    "RunRecord",
    "RunState",
    "Served",
    "ShardAccount",
    "ShardJob",
    "ShardKey",
    "ShardReceipt",
    "ShardResult",
    "ShardRunner",
    "ShardWriter",
    "Target",
    "TorchPredictor",
    "Verified",
    "clahe_mask",
    "compute_shard",
    "cut_for",
    "decide",
    "difference",
    "estimate",
    "in_sequence",
    "is_map_store",
    "local_predictor",
    "map_all",
    "map_image",
    "open_map",
    "open_torch",
    "plan_all",
    "release_record",
    "renumbered",
    "run_states",
    "threads_of",
    "verify_sample",
    "windows_at_once",
]
