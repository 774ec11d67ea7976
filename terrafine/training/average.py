"""The running mean of the weights: steadier than the weights, and better on noisy labels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from terrafine.models.raw import RawModel


class WeightAverage:
    """Exponential mean of a network's weights and of its batch norms' statistics.

    Polyak averaging as mean teachers use it (Tarvainen and Valpola 2017): after every step
    ``mean = decay mean + (1 - decay) weights``, with a smaller decay in the first steps
    ((1 + step) / (10 + step)), so that the first weights are forgotten. ``model`` is a copy of
    the network that holds the mean.
    """

    def __init__(self, source: RawModel, decay: float) -> None:
        self._source, self._decay = source, decay
        self.model = copy.deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step``, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        means, values = (_tensors(model) for model in (self.model, self._source))
        for mean, value in zip(means, values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the ``state_dict`` of an earlier mean."""
        self.model.load_state_dict(dict(state))


def _tensors(model: RawModel) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
