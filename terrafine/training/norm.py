"""Batch norm over the crops of all workers, on the CPU too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def synchronised_batch_norm(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Let every batch norm in ``network`` see all workers' crops while the context lasts.

    Parameters and running statistics stay the very same tensors, and the network has its own
    modules again afterwards. On CUDA torch's SyncBatchNorm does it; torch has none for the CPU.
    """
    kind = nn.SyncBatchNorm if device.type == "cuda" else GroupBatchNorm
    originals = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d)
    ]
    for parent, name, child in originals:
        setattr(parent, name, _sharing(child, kind))
    try:
        yield
    finally:
        for parent, name, child in originals:
            setattr(parent, name, child.train(parent.training))


def _sharing(norm: nn.BatchNorm2d, kind: type[nn.SyncBatchNorm | GroupBatchNorm]) -> nn.Module:
    made = kind(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    made.num_batches_tracked = norm.num_batches_tracked
    return made.train(norm.training)


class GroupBatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose mean and variance in training are those of all workers' crops.

    A single value per channel over all workers has no variance: it is normalised by the running
    statistics, which it leaves as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        assert self.running_mean is not None, "running statistics are kept"
        assert self.running_var is not None, "running statistics are kept"
        if not self.training:
            return super().forward(input)
        values = input.float()
        mean, variance, count = _moments(values)
        if count == 1:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        with torch.no_grad():
            assert self.momentum is not None, "an exponential average"
            assert self.num_batches_tracked is not None, "running statistics are kept"
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        centred = values - mean.view(1, -1, 1, 1)
        normalised = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normalised.to(input.dtype)


def _moments(values_NCHW: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean (C,), biased variance (C,) and number of values per channel over all workers."""
    channels = values_NCHW.shape[1]
    count = values_NCHW.numel() // channels
    variance, mean = torch.var_mean(values_NCHW, dim=(0, 2, 3), correction=0)
    # in double, as the square of the mean is taken away again
    mean, variance = mean.double(), variance.double()
    sums = torch.cat([mean * count, (variance + mean.square()) * count, mean.new_tensor([count])])
    total: Tensor = _Sum.apply(sums)  # type: ignore[no-untyped-call]
    everywhere = int(total[-1].item())
    mean = total[:channels] / everywhere
    variance = (total[channels:-1] / everywhere - mean.square()).clamp(min=0.0)
    return mean.float(), variance.float(), everywhere


class _Sum(torch.autograd.Function):
    """Sum over all workers; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
