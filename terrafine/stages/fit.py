"""A training as plain data, and how one process, or every worker of several, carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict

from terrafine.chips import open_chips
from terrafine.legend import Legend
from terrafine.models import RawInput, RawModel, build_network
from terrafine.spec import ModelSpec, TrainingSpec
from terrafine.storage import Storage
from terrafine.telemetry import TrainingMetrics, serve
from terrafine.training import Group, Observer, TrainingResult, train


class TrainingTask(BaseModel):
    """Everything one training needs. Places are absolute paths, or URLs all workers reach."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chips: str
    """chip store"""
    train: tuple[int, ...]
    validation: tuple[int, ...]
    labels: str | None = None
    """labels that replace those of the chip store"""
    model: ModelSpec
    mean: tuple[float, ...]
    """of the training chips, band by band, in raw numbers"""
    std: tuple[float, ...]
    fill: int
    """raw number of a missing pixel"""
    legend: Legend
    class_weights: tuple[float, ...]
    """in output order"""
    training: TrainingSpec
    epochs: int
    seed: int
    storage: str
    """takes checkpoints and curves; a killed training goes on from what lies there"""
    run: str
    """label of its metrics"""
    heading: str
    """stands beside the progress bar"""

    def build_model(self) -> RawModel:
        """The network with its first weights, taking raw numbers."""
        network = build_network(
            self.model,
            bands=len(self.mean),
            classes=len(self.legend.classes),
            seed=self.seed,
        )
        return RawModel(RawInput(list(self.mean), list(self.std), self.fill), network)


Trainer = Callable[[TrainingTask], TrainingResult]


def fit(task: TrainingTask) -> TrainingResult:
    """Carry out a training in this process, alone or as one worker of torch's default group.

    Where ``training.metrics_port`` is set, the first worker serves metrics there meanwhile.
    """
    with _observed(task) as observer:
        return train(
            open_chips(task.chips),
            train=task.train,
            validation=task.validation,
            model=task.build_model(),
            legend=task.legend,
            class_weights=task.class_weights,
            spec=task.training,
            epochs=task.epochs,
            seed=task.seed,
            storage=Storage.at(task.storage),
            heading=task.heading,
            observer=observer,
        )


@contextmanager
def _observed(task: TrainingTask) -> Iterator[Observer | None]:
    port = task.training.metrics_port
    if port is None or not Group.here().leads:
        yield None
        return
    registry = CollectorRegistry()
    with serve(port, registry):
        yield TrainingMetrics(task.run, registry=registry)
