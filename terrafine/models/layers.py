"""What every network is made of: norms, convolutions, first weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from terrafine.spec import FirstNorm

Sliding = nn.Conv2d | nn.ConvTranspose2d | nn.MaxPool2d

# Height and width that halve four times before one pixel is left.
SMALLEST_INPUT = 16


class Network(nn.Module):
    """Normalised image (N, bands, H, W) float -> logits (N, classes, H, W), H and W at least 16.

    ``output_stride``: input pixels per pixel of the finest features that the classes are told by.
    """

    output_stride: int

    def deepest_path(self) -> Iterator[Sliding]:
        """Convolutions and poolings in the order passed, along the way that sees farthest."""
        raise NotImplementedError(f"{type(self).__name__} does not say how far it sees")


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also trains on a single value per channel.

    The last batch of an epoch may be one small crop, whose coarsest level is one pixel: it has
    no variance, and torch refuses it. Such a batch is normalised by the running statistics, which
    it leaves as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class InstanceBatchNorm(nn.Module):
    """Instance norm on one half of the channels, batch norm on the other, as training starts.

    After IBN-Net (Pan et al. 2018): the one half does not see in which light an image was taken,
    the other keeps what tells its classes apart. Here every channel has the sum of both norms, and
    only their first weights (1 and 0) part the halves, so that training shares them out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.image = nn.InstanceNorm2d(channels, affine=True)
        self.batch = BatchNorm(channels)
        with torch.no_grad():
            self.image.weight[channels // 2 :] = 0.0
            self.batch.weight[: channels // 2] = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        normed: Tensor = self.batch(input) + self.image(input)
        return normed


def norm_of(kind: FirstNorm, channels: int) -> nn.Module:
    """The norm after the first convolution.

    "instance" (Dong et al. 2020, section 3.2) takes out what differs from image to image.
    """
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return BatchNorm(channels) if kind == "batch" else InstanceBatchNorm(channels)


def conv_norm(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch norm and, where asked for, ReLU; size kept at stride 1."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    layers: list[nn.Module] = [conv, BatchNorm(outputs)]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to ``size`` (height, width), pixel centres kept in place."""
    if x.shape[-2] == size[0] and x.shape[-1] == size[1]:
        return x
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """The upper left ``size`` (height, width) of ``x``.

    What was pooled from an odd size and up-sampled again is one row and column too large at its
    end; pixel 2i of the fine level then still lies over pixel i of the coarse one.
    """
    return x[..., : size[0], : size[1]]


def initialise(
    network: nn.Module, classifier: nn.Conv2d, *, keeping: Literal["fan_in", "fan_out"] = "fan_out"
) -> None:
    """He et al. 2015 for every convolution; ``classifier`` starts near no opinion.

    ``keeping``: the way on which variances stay as they are, back (out) or forth (in).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode=keeping, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # Without this the first logits are large at random, and so is the loss.
    nn.init.normal_(classifier.weight, std=0.01)
