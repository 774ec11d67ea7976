"""The stages: the list of them is the architecture."""

from terrafine.stages.adopt import ADOPT, made_release, release_stage
from terrafine.stages.assess import ASSESS, open_reference
from terrafine.stages.deploy import DEPLOY
from terrafine.stages.engine import Engine, Job, Manifest
from terrafine.stages.export import EXPORT
from terrafine.stages.filter import FILTER
from terrafine.stages.gate import GATE
from terrafine.stages.label import LABEL
from terrafine.stages.map import MAP, check_store
from terrafine.stages.prune import PRUNE
from terrafine.stages.publish import PUBLISH, REFUSE
from terrafine.stages.train import TRAIN, TRAIN_PRELIMINARY

ENGINE = Engine(
    [
        LABEL,
        TRAIN_PRELIMINARY,
        FILTER,
        TRAIN,
        PRUNE,
        ASSESS,
        GATE,
        EXPORT,
        DEPLOY,
        ADOPT,
        MAP,
        PUBLISH,
        REFUSE,
    ]
)

__all__ = [
    "ENGINE",
    "Engine",
    "Job",
    "Manifest",
    "check_store",
    "made_release",
    "open_reference",
    "release_stage",
]
