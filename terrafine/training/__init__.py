"""Training: crops, loss, schedule, checkpoints and the loop."""

from terrafine.training.data import ChipSource, Crops
from terrafine.training.history import EpochRecord, TrainingResult
from terrafine.training.loop import choose_device, train
from terrafine.training.schedule import learning_rate

__all__ = [
    "ChipSource",
    "Crops",
    "EpochRecord",
    "TrainingResult",
    "choose_device",
    "learning_rate",
    "train",
]
