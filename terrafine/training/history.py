"""What is known of each step and epoch, who is told of it, and what a training ends with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step.

    ``step`` counts from 1 over the whole training, ``epoch`` from 1. ``loss`` is the mean over
    the labelled pixels of the step's crops on all workers, weighted by class. ``pixels`` are those
    of the crops. ``pixels_per_second`` (of all workers) and ``loader_wait``, the share of the time
    spent waiting for chips (mean over workers; on CUDA an upper bound, as the GPU may still work
    meanwhile), are of the steps since losses were last looked at: one step on the CPU, up to 16 on
    CUDA. ``gpu_memory_bytes`` is the most that this worker's tensors ever took, 0 on the CPU.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    pixels: int
    pixels_per_second: float
    loader_wait: float
    gpu_memory_bytes: int


class EpochRecord(BaseModel):
    """One epoch, as numbers that go into JSON and into a plot.

    ``epoch`` counts from 1. ``learning_rate`` is that of the epoch's first step. ``train_loss``
    and ``validation_loss`` are means over labelled pixels, weighted by class.
    ``validation_agreement`` is the share of labelled validation pixels whose most probable class
    is the product's: agreement with the product, not accuracy. ``validation_recall`` gives that
    share for each class of the product (None where validation has none of it).
    ``pixels_per_second`` counts the crops trained on; ``loader_wait`` is the share of the
    training time spent waiting for chips (on CUDA an upper bound, as in :class:`StepRecord`).
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
    loader_wait: float = 0.0
    gpu_memory_bytes: int = 0

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


class Observer(Protocol):
    """Who wants to be told. Every worker's observer is called equally often, with the same loss."""

    def step(self, record: StepRecord) -> None:
        """An optimiser step was taken."""
        ...

    def epoch(self, record: EpochRecord) -> None:
        """An epoch was trained and validated."""
        ...

    def checkpoint(self, step: int) -> None:
        """The state after ``step`` steps is safe in storage."""
        ...


class Unobserved:
    """Nobody wants to be told."""

    def step(self, record: StepRecord) -> None:
        """Nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Nothing."""

    def checkpoint(self, step: int) -> None:
        """Nothing."""
