"""FC-DenseNet (Jegou et al. 2017, "The One Hundred Layers Tiramisu"), the other one of Table 4.

Jegou et al. publish 56, 67 and 103 layers; Dong et al. 2020 ran one of 64 and do not say how it
is cut. By the publishers' way of counting (convolutions, transitions down and up, first and last)
blocks of equal depth give 64 layers in two ways: four poolings with six layers in each of the nine
blocks, or three with eight in each of seven. This is the first, which is the nearer to the other
two; neither has the receptive field of 695 that Dong et al. quote (docs/adr).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from terrafine.errors import ModelError
from terrafine.models.layers import (
    BatchNorm,
    Network,
    Sliding,
    crop_to,
    initialise,
    norm_of,
)
from terrafine.spec import FirstNorm

FIRST_CHANNELS = 48
DROPOUT = 0.2
# Layers of the blocks on the way down; the last is the one between the ways down and up.
BLOCKS_64 = (6, 6, 6, 6, 6)


def dense_layer(inputs: int, outputs: int, *, kernel: int = 3) -> nn.Sequential:
    """Batch norm, ReLU, convolution, dropout (Table 1 of Jegou et al.)."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(BatchNorm(inputs), nn.ReLU(inplace=True), conv, nn.Dropout(DROPOUT))


class DenseBlock(nn.Module):
    """Layers each of which sees the block's input and the output of every layer before it."""

    layers: nn.ModuleList

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(dense_layer(inputs + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> (input and all that is new, the new alone)."""
        new: list[Tensor] = []
        for layer in self.layers:
            new.append(layer(torch.cat([x, *new], dim=1)))
        added = torch.cat(new, dim=1)
        return torch.cat([x, added], dim=1), added


class FCDenseNet(Network):
    """Fully convolutional DenseNet.

    Parameters: ``bands`` and ``classes`` of input and output; ``growth``, the channels that each
    layer adds; ``blocks``, layers of each block on the way down and of the one at the bottom (the
    way up mirrors the way down); ``first_norm`` after the first convolution, where Jegou et al.
    have none.
    """

    down: nn.ModuleList
    transitions: nn.ModuleList
    widen: nn.ModuleList
    up: nn.ModuleList

    def __init__(
        self,
        bands: int,
        classes: int,
        growth: int = 12,
        first_norm: FirstNorm = "instance",
        blocks: Sequence[int] = BLOCKS_64,
    ) -> None:
        super().__init__()
        if min(bands, classes, growth) < 1:
            raise ModelError(
                f"FC-DenseNet with {bands} bands, {classes} classes and growth {growth} cannot be "
                "built; each must be at least 1"
            )
        self.output_stride = 1
        self.first = nn.Sequential(
            nn.Conv2d(bands, FIRST_CHANNELS, 3, padding=1), norm_of(first_norm, FIRST_CHANNELS)
        )
        # rounded up, so that an odd last row or column is not lost
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        ends = [FIRST_CHANNELS]  # channels after each block on the way down
        for layers in blocks[:-1]:
            ends.append(ends[-1] + layers * growth)
        skips = ends[1:]
        self.down = nn.ModuleList(
            DenseBlock(inputs, growth, layers) for inputs, layers in zip(ends, blocks, strict=True)
        )
        self.transitions = nn.ModuleList(dense_layer(skip, skip, kernel=1) for skip in skips)
        below, widths, up = blocks[-1] * growth, [], []
        for layers, skip in zip(reversed(blocks[:-1]), reversed(skips), strict=True):
            widths.append(below)
            up.append(DenseBlock(below + skip, growth, layers))
            last, below = below + skip, layers * growth
        self.widen = nn.ModuleList(nn.ConvTranspose2d(w, w, 3, stride=2) for w in widths)
        self.up = nn.ModuleList(up)
        self.classifier = nn.Conv2d(last + below, classes, 1)
        # few channels out of many in: kept the other way, the new ones would grow layer by layer
        initialise(self, self.classifier, keeping="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image (N, bands, H, W) float -> logits (N, classes, H, W)."""
        skips: list[Tensor] = []
        every: Tensor = self.first(x)
        *encoders, bottom = self.down
        for block, transition in zip(encoders, self.transitions, strict=True):
            every, _ = block(every)
            skips.append(every)
            every = self.pool(transition(every))
        # only what a block adds is up-sampled, or the channels would pile up (their section 3.2)
        _, added = bottom(every)
        for widen, block in zip(self.widen, self.up, strict=True):
            skip = skips.pop()
            every, added = block(torch.cat([crop_to(widen(added), skip.shape[-2:]), skip], dim=1))
        logits: Tensor = self.classifier(every)
        return logits

    def deepest_path(self) -> Iterator[Sliding]:
        """Through every layer, down to the coarsest level and up again, to one output pixel."""
        yield from _convolutions(self.first)
        *encoders, bottom = self.down
        for block, transition in zip(encoders, self.transitions, strict=True):
            yield from _convolutions(block)
            yield from _convolutions(transition)
            yield self.pool
        yield from _convolutions(bottom)
        for widen, block in zip(self.widen, self.up, strict=True):
            assert isinstance(widen, nn.ConvTranspose2d)
            yield widen
            yield from _convolutions(block)
        yield self.classifier


def _convolutions(part: nn.Module) -> Iterator[nn.Conv2d]:
    return (m for m in part.modules() if isinstance(m, nn.Conv2d))
