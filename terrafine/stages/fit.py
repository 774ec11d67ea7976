"""A training as plain data, and how one process, or every worker of several, carries it out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import safetensors.torch
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from terrafine.chips import open_chips
from terrafine.errors import TrainingError
from terrafine.export.bundle import WEIGHTS
from terrafine.legend import Legend
from terrafine.models import RawInput, RawModel, build_network
from terrafine.pruning import plan_pruning, zero_filters
from terrafine.spec import ModelSpec, PruneSpec, TrainingSpec
from terrafine.storage import Storage
from terrafine.telemetry import TrainingMetrics, run_port, serve
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
    channels: dict[str, tuple[int, int]] = {}
    """(in, out) of the layers that a pruning left narrower"""
    start: str | None = None
    """folder or URL of the bundle whose weights are the first ones; else they are drawn by seed"""
    prune: PruneSpec | None = None
    """filters that are set to zero after every epoch"""
    mean: tuple[float, ...]
    """of the training chips, band by band, in raw numbers"""
    std: tuple[float, ...]
    fill: int
    """raw number of a missing pixel"""
    legend: Legend
    class_weights: tuple[float, ...]
    confusion: tuple[tuple[float, ...], ...] | None = None
    """of the labels: row = true class, column = what the label says"""
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
            channels=self.channels,
        )
        return RawModel(RawInput(list(self.mean), list(self.std), self.fill), network)

    def first_weights(self) -> bytes | None:
        """The weights file of ``start``; TrainingError when there is none."""
        if self.start is None:
            return None
        weights = Storage.at(self.start).read(WEIGHTS)
        if weights is None:
            raise TrainingError(
                f"{self.start}: there is no {WEIGHTS} to start from; delete the stage's folder in "
                "the work directory and run it again"
            )
        return weights


Trainer = Callable[[TrainingTask], TrainingResult]


def fit(task: TrainingTask) -> TrainingResult:
    """Carry out a training in this process, alone or as one worker of torch's default group.

    The first worker serves metrics meanwhile where ``training.metrics_port`` or the environment
    names a port.
    """
    model, lineage = task.build_model(), {"model": task.model.model_dump_json()}
    first = task.first_weights()
    if first is not None:
        _load(model, first, task)
        lineage["first_weights"] = hashlib.sha256(first).hexdigest()
    after_epoch = None
    if task.prune is not None:
        plan = plan_pruning(model.network, task.prune, bands=len(task.mean))
        lineage["pruning"] = task.prune.model_dump_json()

        def after_epoch(trained: RawModel) -> None:
            zero_filters(trained.network, plan)

    with _observed(task) as observer:
        return train(
            open_chips(task.chips),
            train=task.train,
            validation=task.validation,
            model=model,
            legend=task.legend,
            class_weights=task.class_weights,
            confusion=task.confusion,
            spec=task.training,
            epochs=task.epochs,
            seed=task.seed,
            storage=Storage.at(task.storage),
            heading=task.heading,
            observer=observer,
            after_epoch=after_epoch,
            also_identified_by=lineage,
        )


def _load(model: RawModel, weights: bytes, task: TrainingTask) -> None:
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"{task.start}/{WEIGHTS}: these weights do not fit {task.model.arch} with "
            f"{len(task.mean)} bands and {len(task.legend.classes)} classes; start from a model of "
            "this spec's architecture, bands and legend"
        ) from error


@contextmanager
def _observed(task: TrainingTask) -> Iterator[Observer | None]:
    port = run_port(task.training.metrics_port)
    if port is None or not Group.here().leads:
        yield None
        return
    registry = CollectorRegistry()
    with serve(port, registry):
        yield TrainingMetrics(task.run, registry=registry)
