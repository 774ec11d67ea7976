"""Training: crops, loss, schedule, checkpoints and the loop."""

from terrafine.training.curves import STEPS
from terrafine.training.data import ChipSource, Crops
from terrafine.training.group import Group
from terrafine.training.history import EpochRecord, Observer, StepRecord, TrainingResult, Unobserved
from terrafine.training.loop import read_result, train
from terrafine.training.patience import patiently
from terrafine.training.run import check_workers, choose_device
from terrafine.training.schedule import learning_rate

__all__ = [
    "STEPS",
    "ChipSource",
    "Crops",
    "EpochRecord",
    "Group",
    "Observer",
    "StepRecord",
    "TrainingResult",
    "Unobserved",
    "check_workers",
    "choose_device",
    "learning_rate",
    "patiently",
    "read_result",
    "train",
]
