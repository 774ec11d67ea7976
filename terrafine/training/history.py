"""What is known of each epoch, and what a training ends with."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from torch import Tensor


class EpochRecord(BaseModel):
    """One epoch, as numbers that go into JSON and into a plot.

    ``epoch`` counts from 1. ``learning_rate`` is that of the epoch's first step. ``train_loss``
    and ``validation_loss`` are means over labelled pixels, weighted by class.
    ``validation_agreement`` is the share of labelled validation pixels whose most probable class
    is the product's: agreement with the product, not accuracy. ``validation_recall`` gives that
    share for each class of the product (None where validation has none of it).
    ``pixels_per_second`` counts the crops trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_agreement: float
    validation_recall: dict[str, float | None]
    seconds: float
    pixels_per_second: float

    def beats(self, other: EpochRecord) -> bool:
        """Whether this epoch's weights are better: more agreement, or as much and less loss."""
        ours = (self.validation_agreement, -self.validation_loss)
        return ours > (other.validation_agreement, -other.validation_loss)


@dataclass(frozen=True)
class TrainingResult:
    """A finished training: ``best_state`` holds the weights of epoch ``best_epoch``, on the CPU."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    best_state: dict[str, Tensor]
