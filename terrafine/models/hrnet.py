"""HRNet as Dong et al. 2020 (section 3.2) use it: fine resolution kept from end to end.

HRNetV2 with a stem of two 3x3 convolutions, one stage of bottlenecks, and three stages of
parallel branches (C, 2C, 4C, 8C channels, each at half the resolution of the one before) that
exchange what they know after every four residual blocks. Width C = 24, 4 bands and 10 classes
give the 16 812 946 parameters of the paper's Table 5.

Everything is a plain module with a fixed place in the tree: what sums channels of several
convolutions (:class:`Residual`, :class:`Fusion`) is a module of its own, so that a pruner finds
the coupled channels by type.
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
    conv_norm,
    initialise,
    norm_of,
    resize,
)
from terrafine.spec import FirstNorm

Strides = tuple[int, int]

STEM_CHANNELS = 64
BOTTLENECK_EXPANSION = 4
BLOCKS = 4
# Exchange modules in stages 2, 3 and 4.
STAGE_MODULES = (1, 4, 3)


class Residual(nn.Module):
    """ReLU(body(x) + shortcut(x)): the last convolutions of both share their channels."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def bottleneck(inputs: int, width: int) -> Residual:
    """1x1, 3x3, 1x1 convolutions of ``width`` channels, to four times as many."""
    outputs = width * BOTTLENECK_EXPANSION
    body = nn.Sequential(
        conv_norm(inputs, width, kernel=1),
        conv_norm(width, width),
        conv_norm(width, outputs, kernel=1, relu=False),
    )
    same = inputs == outputs
    return Residual(
        body, nn.Identity() if same else conv_norm(inputs, outputs, kernel=1, relu=False)
    )


def basic_block(channels: int) -> Residual:
    """Two 3x3 convolutions."""
    body = nn.Sequential(conv_norm(channels, channels), conv_norm(channels, channels, relu=False))
    return Residual(body, nn.Identity())


class Fusion(nn.Module):
    """Every branch receives the sum of all branches, brought to its channels and its size.

    ``paths[i][j]`` leads from branch j to branch i: a 1x1 convolution before up-sampling where j
    is coarser, 3x3 convolutions of stride 2 where it is finer, nothing where it is the same. All
    paths into one i share their output channels.
    """

    paths: nn.ModuleList

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        branches = range(len(channels))
        self.paths = nn.ModuleList(
            nn.ModuleList(_path(channels, source, target) for source in branches)
            for target in branches
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """One (N, C_i, H_i, W_i) per branch -> the same shapes."""
        return [self._into(target, branches) for target in range(len(branches))]

    def _into(self, target: int, branches: list[Tensor]) -> Tensor:
        size = branches[target].shape[-2:]
        paths = self.paths[target]
        assert isinstance(paths, nn.ModuleList)
        total = branches[target]
        for source, path in enumerate(paths):
            if source != target:
                total = total + resize(path(branches[source]), size)
        out: Tensor = self.relu(total)
        return out


def _path(channels: Sequence[int], source: int, target: int) -> nn.Module:
    inputs, outputs = channels[source], channels[target]
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_norm(inputs, outputs, kernel=1, relu=False)
    steps = target - source
    halvings = [conv_norm(inputs, inputs, stride=2) for _ in range(steps - 1)]
    return nn.Sequential(*halvings, conv_norm(inputs, outputs, stride=2, relu=False))


class Exchange(nn.Module):
    """Four residual blocks in every branch, then a fusion."""

    branches: nn.ModuleList

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(basic_block(c) for _ in range(BLOCKS))) for c in channels
        )
        self.fusion = Fusion(channels)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """One tensor per branch -> the same shapes."""
        fused: list[Tensor] = self.fusion(
            [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        )
        return fused


class Stage(nn.Module):
    """A transition that adds one coarser branch, and the stage's exchange modules."""

    transitions: nn.ModuleList
    exchanges: nn.ModuleList

    def __init__(self, inputs: Sequence[int], channels: Sequence[int], modules: int) -> None:
        super().__init__()
        kept = [
            nn.Identity() if before == after else conv_norm(before, after)
            for before, after in zip(inputs, channels[:-1], strict=True)
        ]
        added = conv_norm(inputs[-1], channels[-1], stride=2)
        self.transitions = nn.ModuleList([*kept, added])
        self.exchanges = nn.ModuleList(Exchange(channels) for _ in range(modules))

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """n tensors -> n + 1 tensors, the last at half the resolution of the one before."""
        sources = [*branches, branches[-1]]
        out: list[Tensor] = [t(x) for t, x in zip(self.transitions, sources, strict=True)]
        for exchange in self.exchanges:
            out = exchange(out)
        return out


class HRNet(Network):
    """HRNetV2 for segmentation (Dong et al. 2020, section 3.2).

    Parameters: ``bands`` and ``classes`` of input and output; ``width`` C of the finest branch;
    ``stem_strides`` of the two stem convolutions: (2, 1) is the paper's and keeps the finest
    branch at half the input's resolution, (2, 2) costs a quarter; ``first_norm`` after the first
    convolution ("instance" in the paper: it takes out what differs from image to image);
    ``stem_channels`` of the stem and of the bottlenecks after it (64 in the paper).
    """

    def __init__(
        self,
        bands: int,
        classes: int,
        width: int = 24,
        stem_strides: Strides = (2, 1),
        first_norm: FirstNorm = "instance",
        stem_channels: int = STEM_CHANNELS,
    ) -> None:
        super().__init__()
        if min(bands, classes, width, stem_channels) < 1:
            raise ModelError(
                f"HRNet with {bands} bands, {classes} classes, width {width} and {stem_channels} "
                "stem channels cannot be built; each must be at least 1"
            )
        channels = tuple(width * 2**i for i in range(len(STAGE_MODULES) + 1))
        wide = stem_channels * BOTTLENECK_EXPANSION
        self.output_stride = stem_strides[0] * stem_strides[1]
        self.stem = nn.Sequential(
            nn.Conv2d(bands, stem_channels, 3, stem_strides[0], padding=1, bias=False),
            norm_of(first_norm, stem_channels),
            nn.ReLU(inplace=True),
            conv_norm(stem_channels, stem_channels, stride=stem_strides[1]),
        )
        self.stage1 = nn.Sequential(
            bottleneck(stem_channels, stem_channels),
            *(bottleneck(wide, stem_channels) for _ in range(BLOCKS - 1)),
        )
        self.stage2 = Stage((wide,), channels[:2], STAGE_MODULES[0])
        self.stage3 = Stage(channels[:2], channels[:3], STAGE_MODULES[1])
        self.stage4 = Stage(channels[:3], channels, STAGE_MODULES[2])
        total = sum(channels)
        classifier = nn.Conv2d(total, classes, 1)
        self.head = nn.Sequential(
            nn.Conv2d(total, total, 1), BatchNorm(total), nn.ReLU(inplace=True), classifier
        )
        initialise(self, classifier)
        self._start_as_identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image (N, bands, H, W) float -> logits (N, classes, H, W).

        Any H and W of at least 16 will do: branches of odd size are met by resizing to the size
        of the branch that receives.
        """
        branches = [self.stage1(self.stem(x))]
        for stage in (self.stage2, self.stage3, self.stage4):
            branches = stage(branches)
        size = branches[0].shape[-2:]
        logits = self.head(torch.cat([resize(branch, size) for branch in branches], dim=1))
        return resize(logits, x.shape[-2:])

    def deepest_path(self) -> Iterator[Sliding]:
        """The convolutions from the input to the coarsest branch, which sees farthest.

        Shortcuts of 1x1 are among them; they see no neighbours and do not count.
        """
        parts: list[nn.Module] = [self.stem, self.stage1]
        for stage in (self.stage2, self.stage3, self.stage4):
            parts.append(stage.transitions[-1])
            for exchange in stage.exchanges:
                assert isinstance(exchange, Exchange)
                parts.append(exchange.branches[-1])
        for part in parts:
            yield from (m for m in part.modules() if isinstance(m, nn.Conv2d))

    def _start_as_identity(self) -> None:
        """Residual blocks start as the identity (Goyal et al. 2017, section 5.1).

        Without it the running statistics of the first few hundred steps, compounded over 40
        blocks, give logits of 10^13 in evaluation; small scenes are trained for no more steps.
        """
        for module in self.modules():
            if isinstance(module, Residual):
                *_, last = (m for m in module.body.modules() if isinstance(m, BatchNorm))
                nn.init.zeros_(last.weight)
