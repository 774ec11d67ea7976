"""Zeroing filters while a network is trained, and taking them out of it at the end.

A channel whose filters are zero must be zero wherever it is read, or its constant would have to be
carried over, which is not exact where a convolution pads with zeros (docs/adr). So with a filter
its bias goes, and the shift and the running mean of every norm that the channel passes: behind
norm and ReLU it is exactly zero then, and the network without it computes the same function.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from terrafine.errors import PruningError
from terrafine.models.channels import Convolution, keep_channels
from terrafine.pruning.median import channel_filters, nearest_to_median
from terrafine.pruning.plan import Group, PruningPlan
from terrafine.pruning.trace import Ids

N = TypeVar("N", bound=nn.Module)


@torch.no_grad()
def zero_filters(network: nn.Module, plan: PruningPlan) -> None:
    """Set the planned number of filters nearest the geometric median to zero, in place.

    Algorithm 1 of Dong et al. 2020, after an epoch; they may come back in the next one.
    """
    chosen = [_nearest(network, plan, group) for group in plan.groups if group.remove]
    gone = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    for name, ids in plan.map.outputs.items():
        layer, places = network.get_submodule(name), _places(ids, gone)
        assert isinstance(layer, Convolution), "only convolutions make channels"
        layer.weight[(slice(None), places) if layer.transposed else places] = 0.0
        if layer.bias is not None:
            layer.bias[places] = 0.0
    for name, ids in plan.map.norms.items():
        norm, places = network.get_submodule(name), _places(ids, gone)
        for value in (norm.bias, norm.running_mean):
            if isinstance(value, Tensor):
                value[places] = 0.0


@torch.no_grad()
def without_zeroed(network: N, plan: PruningPlan) -> N:
    """A copy of a network from which the filters that :func:`zero_filters` zeroed are removed.

    In evaluation it computes the same function. PruningError when they are not zero.
    """
    removed = removed_channels(network, plan)
    compact = copy.deepcopy(network)
    for name, ids in plan.map.outputs.items():
        inputs = _kept(plan.map.inputs[name], removed)
        outputs = _kept(ids, removed)
        layer = compact.get_submodule(name)
        # a grouped convolution's channels are all kept
        if len(inputs) < len(plan.map.inputs[name]) or len(outputs) < len(ids):
            keep_channels(layer, inputs, outputs)
    for name, ids in plan.map.norms.items():
        kept = _kept(ids, removed)
        keep_channels(compact.get_submodule(name), kept, kept)
    return compact


def removed_channels(network: nn.Module, plan: PruningPlan) -> Ids:
    """Ids of the channels that :func:`without_zeroed` removes; raises as that does."""
    gone = [_zeroed(network, plan, group) for group in plan.groups if group.remove]
    return np.concatenate(gone) if gone else np.empty(0, np.int64)


def _nearest(network: nn.Module, plan: PruningPlan, group: Group) -> Ids:
    filters = _filters(network, plan, group)
    places = nearest_to_median(filters, group.remove).numpy()
    return np.array(group.channels, np.int64).take(places)


def _zeroed(network: nn.Module, plan: PruningPlan, group: Group) -> Ids:
    """The channels that were zeroed last."""
    zero = ~_filters(network, plan, group).any(dim=1)
    places = zero.nonzero().flatten().numpy()[: group.remove]
    if len(places) < group.remove:
        raise PruningError(
            f"{group.layers[0]}: {group.remove} of its filters are to be removed, but only "
            f"{len(places)} are zero; zero them first"
        )
    return np.array(group.channels, np.int64).take(places)


def _filters(network: nn.Module, plan: PruningPlan, group: Group) -> Tensor:
    return channel_filters(network, group.layers, [plan.map.outputs[name] for name in group.layers])


def _places(ids: Ids, gone: Ids) -> Tensor:
    return torch.from_numpy(np.flatnonzero(np.isin(ids, gone)))


def _kept(ids: Ids, gone: Ids) -> Tensor:
    return torch.from_numpy(np.flatnonzero(~np.isin(ids, gone)))
