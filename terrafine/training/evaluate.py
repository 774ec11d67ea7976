"""How well a network agrees with the label product on chips it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from terrafine.errors import LossError, TrainingError
from terrafine.models.raw import RawModel
from terrafine.training.data import Batch
from terrafine.training.group import ALONE, Group
from terrafine.training.loss import IGNORED, WeightedCrossEntropy, counted_target


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, and counts of pixels by class: rows the product's, columns the network's."""

    loss: float
    counts: Tensor

    @property
    def agreement(self) -> float:
        """Share of labelled pixels whose most probable class is the product's."""
        return float(self.counts.diagonal().sum() / self.counts.sum())

    @property
    def recall(self) -> list[float | None]:
        """That share for each class of the product; None where it does not occur."""
        rows = self.counts.sum(dim=1).tolist()
        hits = self.counts.diagonal().tolist()
        return [hit / row if row else None for hit, row in zip(hits, rows, strict=True)]


def evaluate(
    model: RawModel,
    batches: Iterable[Batch],
    loss: WeightedCrossEntropy,
    *,
    device: torch.device,
    autocast: AbstractContextManager[None],
    group: Group = ALONE,
) -> Evaluation:
    """Run ``model`` in evaluation mode over this worker's ``batches``; counts are of all workers.

    Raises TrainingError when no pixel has a label, LossError when the loss is not finite.
    """
    model.eval()
    classes = len(loss.weights)
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    with torch.inference_mode():
        for image, labels in batches:
            with autocast:
                logits, valid = model.logits_and_valid(image.to(device, non_blocking=True))
            target = counted_target(labels.to(device, non_blocking=True), valid)
            sums += torch.stack(loss(logits, target)).double()
            labelled = target != IGNORED
            pairs = target[labelled] * classes + logits.argmax(dim=1)[labelled]
            counts += torch.bincount(pairs, minlength=classes * classes)
    total, weight = group.sum_(sums).tolist()
    group.sum_(counts)
    if not weight:
        raise TrainingError(
            "no pixel of the validation chips has a label, so that no epoch can be called the "
            "best; raise chips.validation_fraction or lower chips.block"
        )
    if not math.isfinite(total):
        raise LossError(
            "the loss on the validation chips is not a number; lower training.learning_rate"
        )
    return Evaluation(total / weight, counts.view(classes, classes).cpu())
