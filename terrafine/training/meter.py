"""What steps cost and came to, looked at every few steps; the first bad loss stops training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from terrafine.errors import TrainingError
from terrafine.training.data import Batch
from terrafine.training.group import Group
from terrafine.training.history import StepRecord

# CUDA need not wait for the host at every step.
CUDA_LOOKS_EVERY = 16


@dataclass
class EpochSums:
    """What the unfinished epoch adds up to, over all workers."""

    loss: float = 0.0
    weight: float = 0.0
    pixels: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Waiting:
    """Batches, and the seconds that were spent waiting for them.

    On CUDA that is the most that training was held up: meanwhile the GPU may have been at work on
    the steps before.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._seconds += time.perf_counter() - started

    def take(self) -> float:
        """Seconds since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@dataclass(frozen=True)
class Taken:
    """A step whose loss is still on the device: ``sums`` of loss and weight."""

    step: int
    rate: float
    pixels: int
    sums: Tensor


@dataclass
class Meter:
    """Collects an epoch's steps and tells ``report`` of them once their losses are known.

    ``explain(step, loss)`` makes the error for a loss that is not a number.
    """

    epoch: int
    sums: EpochSums
    group: Group
    device: torch.device
    waiting: Waiting
    report: Callable[[StepRecord], None]
    explain: Callable[[int, float], TrainingError]
    _taken: list[Taken] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def add(self, taken: Taken) -> None:
        """One more step was taken."""
        self._taken.append(taken)
        if self.device.type == "cpu" or len(self._taken) == CUDA_LOOKS_EVERY:
            self.look()

    def look(self) -> None:
        """Learn the losses of the latest steps; TrainingError at the first that is no number."""
        if not self._taken:
            return
        losses = torch.stack([taken.sums for taken in self._taken]).tolist()
        for taken, (total, _) in zip(self._taken, losses, strict=True):
            if not math.isfinite(total):
                raise self.explain(taken.step, total)
        seconds = time.perf_counter() - self._since
        waited = min(seconds, self.group.mean(self.waiting.take(), self.device))
        pixels = sum(taken.pixels for taken in self._taken)
        self.sums.pixels += pixels
        self.sums.seconds += seconds
        self.sums.waited += waited
        for taken, (total, weight) in zip(self._taken, losses, strict=True):
            self.sums.loss += total
            self.sums.weight += weight
            self.report(
                StepRecord(
                    step=taken.step,
                    epoch=self.epoch,
                    loss=total / weight if weight else 0.0,
                    learning_rate=taken.rate,
                    pixels=taken.pixels,
                    pixels_per_second=pixels / seconds,
                    loader_wait=waited / seconds,
                    gpu_memory_bytes=gpu_memory(self.device),
                )
            )
        self._taken.clear()
        self.restart()

    def restart(self) -> None:
        """What took time since the latest look was not training."""
        self._since = time.perf_counter()


def gpu_memory(device: torch.device) -> int:
    """The most bytes that tensors ever took on a CUDA device; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
