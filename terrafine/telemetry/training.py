"""Metrics of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from terrafine.training import EpochRecord, StepRecord


class TrainingMetrics:
    """A training's metrics, set by being its observer.

    Metrics of one ``registry``; ``run`` is a label of each, so that the trainings of several runs,
    and the preliminary and the final one of the same run, are told apart.
    """

    def __init__(self, run: str, *, registry: CollectorRegistry) -> None:
        self._run = run

        def counter(name: str, text: str) -> Counter:
            made = Counter(f"terrafine_training_{name}", text, ["run"], registry=registry)
            return made.labels(run)

        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(f"terrafine_training_{name}", text, ["run"], registry=registry)
            return made.labels(run)

        self._steps = counter("steps", "Optimiser steps taken since this process started.")
        self._pixels = counter("pixels", "Pixels of the crops trained on since then, all workers.")
        self._step = gauge("step", "Latest optimiser step of the training.")
        self._epoch = gauge("epoch", "Epoch that is being trained, from 1.")
        self._loss = gauge("loss", "Mean loss over the labelled pixels of the latest step.")
        self._rate = gauge("learning_rate", "Learning rate of the latest step.")
        self._speed = gauge("pixels_per_second", "Pixels trained on per second, all workers.")
        self._wait = gauge(
            "loader_wait_ratio", "Share of the time spent waiting for chips; CUDA: at most that."
        )
        self._memory = gauge("gpu_memory_bytes", "Most GPU memory tensors ever took; 0: CPU.")
        self._validation_loss = gauge("validation_loss", "Mean loss on the validation chips.")
        self._agreement = gauge(
            "validation_agreement", "Share of labelled validation pixels that agree with labels."
        )
        self._checkpoint = gauge("checkpoint_step", "Step of the latest checkpoint in storage.")
        self._recall = Gauge(
            "terrafine_training_validation_recall",
            "That share among the validation pixels of each class of the labels.",
            ["run", "class"],
            registry=registry,
        )

    def step(self, record: StepRecord) -> None:
        """An optimiser step was taken."""
        self._steps.inc()
        self._pixels.inc(record.pixels)
        self._step.set(record.step)
        self._epoch.set(record.epoch)
        self._loss.set(record.loss)
        self._rate.set(record.learning_rate)
        self._speed.set(record.pixels_per_second)
        self._wait.set(record.loader_wait)
        self._memory.set(record.gpu_memory_bytes)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch was trained and validated."""
        self._epoch.set(record.epoch)
        self._validation_loss.set(record.validation_loss)
        self._agreement.set(record.validation_agreement)
        for name, share in record.validation_recall.items():
            # a class that validation has none of has no accuracy
            if share is not None:
                self._recall.labels(self._run, name).set(share)

    def checkpoint(self, step: int) -> None:
        """The state after ``step`` steps is safe in storage."""
        self._checkpoint.set(step)
