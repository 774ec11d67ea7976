"""U-Net (Ronneberger, Fischer and Brox 2015), the first of the other networks of Table 4.

As published: two 3x3 convolutions a level, four 2x2 max poolings, 2x2 up-convolutions, skip
connections by concatenation. Two things differ, as they do in everything that is called U-Net
today: convolutions are padded, so that the output has the input's size, and each is followed by
batch norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from terrafine.errors import ModelError
from terrafine.models.layers import (
    Network,
    Sliding,
    conv_norm,
    crop_to,
    initialise,
    norm_of,
)
from terrafine.spec import FirstNorm

LEVELS = 5


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU."""
    return nn.Sequential(conv_norm(inputs, outputs), conv_norm(outputs, outputs))


class UNet(Network):
    """U-Net with batch norm and padded convolutions.

    Parameters: ``bands`` and ``classes`` of input and output; ``width`` of the finest level (64 as
    published), doubled on each of the four below it; ``first_norm`` after the first convolution.
    """

    down: nn.ModuleList
    widen: nn.ModuleList
    up: nn.ModuleList

    def __init__(
        self, bands: int, classes: int, width: int = 64, first_norm: FirstNorm = "instance"
    ) -> None:
        super().__init__()
        if min(bands, classes, width) < 1:
            raise ModelError(
                f"U-Net with {bands} bands, {classes} classes and width {width} cannot be built; "
                "each must be at least 1"
            )
        channels = [width * 2**level for level in range(LEVELS)]
        pairs = list(pairwise(channels))
        first = nn.Sequential(
            nn.Conv2d(bands, width, 3, padding=1, bias=False),
            norm_of(first_norm, width),
            nn.ReLU(inplace=True),
            conv_norm(width, width),
        )
        self.output_stride = 1
        self.down = nn.ModuleList([first, *(double_conv(fine, coarse) for fine, coarse in pairs)])
        # rounded up, so that an odd last row or column is not lost
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.widen = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(pairs)
        )
        self.up = nn.ModuleList(double_conv(2 * fine, fine) for fine, _ in reversed(pairs))
        self.classifier = nn.Conv2d(width, classes, 1)
        initialise(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image (N, bands, H, W) float -> logits (N, classes, H, W)."""
        skips: list[Tensor] = []
        for level, convs in enumerate(self.down):
            x = convs(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for widen, convs in zip(self.widen, self.up, strict=True):
            skip = skips.pop()
            x = convs(torch.cat([skip, crop_to(widen(x), skip.shape[-2:])], dim=1))
        logits: Tensor = self.classifier(x)
        return logits

    def deepest_path(self) -> Iterator[Sliding]:
        """Down to the coarsest level and up again, to one pixel of the output."""
        for level, convs in enumerate(self.down):
            if level:
                yield self.pool
            yield from (m for m in convs.modules() if isinstance(m, nn.Conv2d))
        for widen, convs in zip(self.widen, self.up, strict=True):
            assert isinstance(widen, nn.ConvTranspose2d)
            yield widen
            yield from (m for m in convs.modules() if isinstance(m, nn.Conv2d))
        yield self.classifier
