"""Which filters say least: those nearest the geometric median of their layer (FPGM).

He et al. 2019 ("Filter Pruning via Geometric Median"); Dong et al. 2020, section 3.4, equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terrafine.models.channels import Convolution
from terrafine.pruning.trace import Ids


def filters_of(convolution: nn.Module) -> Tensor:
    """(filters, numbers of one) of a convolution, in the order of its output channels."""
    assert isinstance(convolution, Convolution), "only convolutions have filters"
    weight = convolution.weight.detach()
    return (weight.transpose(0, 1) if convolution.transposed else weight).flatten(1)


def channel_filters(network: nn.Module, layers: Sequence[str], outputs: Sequence[Ids]) -> Tensor:
    """(channels, numbers) float64 on the CPU: for each channel, by id, its filters of all layers.

    Layers that are added up share their channels; the filters that make one of them stand side by
    side, as one long filter.
    """
    parts = [
        filters_of(network.get_submodule(name)).double().cpu()[torch.from_numpy(ids.argsort())]
        for name, ids in zip(layers, outputs, strict=True)
    ]
    return torch.cat(parts, dim=1)


def median_distances(filters_FD: Tensor) -> Tensor:
    """Sum of Euclidean distances of every filter (signs kept) to all others, float64.

    The smaller, the nearer to the layer's geometric median, and the better the others can stand in
    for it.
    """
    filters = filters_FD.double()
    distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
    # in one order for all, so that equal filters have equal sums
    return distances.sort(dim=1).values.sum(dim=1)


def nearest_to_median(filters_FD: Tensor, count: int) -> Tensor:
    """Indexes of the ``count`` filters to go, in increasing order.

    Filters that are zero go first: they were taken before, and did not come back. Of equal ones
    the first goes.
    """
    distances = median_distances(filters_FD)
    distances[~filters_FD.any(dim=1)] = -1.0
    order = distances.argsort(stable=True)
    return order[:count].sort().values
