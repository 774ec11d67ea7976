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
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from terrafine.errors import ModelError

Strides = tuple[int, int]
FirstNorm = Literal["instance", "batch"]

STEM_CHANNELS = 64
BOTTLENECK_CHANNELS = 64
BOTTLENECK_EXPANSION = 4
BLOCKS = 4
# Exchange modules in stages 2, 3 and 4.
STAGE_MODULES = (1, 4, 3)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also trains on a single value per channel.

    The last batch of an epoch may be one small crop, whose coarsest branch is one pixel: it has
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


def bottleneck(inputs: int) -> Residual:
    """1x1, 3x3, 1x1 convolutions to 256 channels."""
    outputs = BOTTLENECK_CHANNELS * BOTTLENECK_EXPANSION
    body = nn.Sequential(
        conv_norm(inputs, BOTTLENECK_CHANNELS, kernel=1),
        conv_norm(BOTTLENECK_CHANNELS, BOTTLENECK_CHANNELS),
        conv_norm(BOTTLENECK_CHANNELS, outputs, kernel=1, relu=False),
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


class HRNet(nn.Module):
    """HRNetV2 for segmentation (Dong et al. 2020, section 3.2).

    Parameters: ``bands`` and ``classes`` of input and output; ``width`` C of the finest branch;
    ``stem_strides`` of the two stem convolutions: (2, 1) is the paper's and keeps the finest
    branch at half the input's resolution, (2, 2) costs a quarter; ``first_norm`` after the first
    convolution ("instance" in the paper: it takes out what differs from image to image).
    """

    def __init__(
        self,
        bands: int,
        classes: int,
        width: int = 24,
        stem_strides: Strides = (2, 1),
        first_norm: FirstNorm = "instance",
    ) -> None:
        super().__init__()
        if min(bands, classes, width) < 1:
            raise ModelError(
                f"HRNet with {bands} bands, {classes} classes and width {width} cannot be built; "
                "each must be at least 1"
            )
        channels = tuple(width * 2**i for i in range(len(STAGE_MODULES) + 1))
        wide = BOTTLENECK_CHANNELS * BOTTLENECK_EXPANSION
        norm = (
            nn.InstanceNorm2d(STEM_CHANNELS, affine=True)
            if first_norm == "instance"
            else BatchNorm(STEM_CHANNELS)
        )
        self.output_stride = stem_strides[0] * stem_strides[1]
        self.stem = nn.Sequential(
            nn.Conv2d(bands, STEM_CHANNELS, 3, stem_strides[0], padding=1, bias=False),
            norm,
            nn.ReLU(inplace=True),
            conv_norm(STEM_CHANNELS, STEM_CHANNELS, stride=stem_strides[1]),
        )
        self.stage1 = nn.Sequential(
            bottleneck(STEM_CHANNELS), *(bottleneck(wide) for _ in range(BLOCKS - 1))
        )
        self.stage2 = Stage((wide,), channels[:2], STAGE_MODULES[0])
        self.stage3 = Stage(channels[:2], channels[:3], STAGE_MODULES[1])
        self.stage4 = Stage(channels[:3], channels, STAGE_MODULES[2])
        total = sum(channels)
        classifier = nn.Conv2d(total, classes, 1)
        self.head = nn.Sequential(
            nn.Conv2d(total, total, 1), BatchNorm(total), nn.ReLU(inplace=True), classifier
        )
        self._initialise(classifier)

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

    def deepest_path(self) -> Iterator[nn.Conv2d]:
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

    def _initialise(self, classifier: nn.Conv2d) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Without this the first logits are large at random, and so is the loss.
        nn.init.normal_(classifier.weight, std=0.01)
        # Residual blocks start as the identity (Goyal et al. 2017, section 5.1). Without it the
        # running statistics of the first few hundred steps, compounded over 40 blocks, give
        # logits of 10^13 in evaluation; small scenes are trained for no more steps than that.
        for module in self.modules():
            if isinstance(module, Residual):
                *_, last = (m for m in module.body.modules() if isinstance(m, BatchNorm))
                nn.init.zeros_(last.weight)
