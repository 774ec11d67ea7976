"""Networks to prune, small and in every way that channels of several layers can be coupled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from terrafine.models import Network, build_network
from terrafine.spec import ModelSpec

BANDS, CLASSES = 3, 5


def conv_norm(inputs: int, outputs: int, stride: int = 1, *, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias), nn.BatchNorm2d(outputs)
    )


class EveryCoupling(nn.Module):
    """Instance norm first, residuals with and without projection, a fusion of three resolutions,
    concatenation, transposed convolution, a norm before its convolution, a convolution used twice,
    a depthwise one, biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(BANDS, 10, 3, padding=1)
        self.first_norm = nn.InstanceNorm2d(10, affine=True)
        self.identity = nn.Sequential(conv_norm(10, 7), nn.ReLU(), conv_norm(7, 10))
        self.project = conv_norm(10, 12)
        self.body = nn.Sequential(conv_norm(10, 9, bias=True), nn.ReLU(), conv_norm(9, 12))
        self.halve = conv_norm(12, 8, stride=2)
        self.quarter = conv_norm(8, 11, stride=2)
        self.from_half = conv_norm(8, 12)
        self.from_quarter = conv_norm(11, 12)
        self.widen = nn.ConvTranspose2d(11, 8, 2, stride=2)
        self.before = nn.BatchNorm2d(12 + 8)
        self.behind = nn.Conv2d(12 + 8, 13, 3, padding=1)
        self.twice = nn.Conv2d(13, 13, 3, padding=1)
        self.each = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.mix = nn.Conv2d(13, 6, 1)
        self.drop = nn.Dropout(0.2)
        self.classifier = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = functional.relu(self.first_norm(self.first(x)))
        x = functional.relu(self.identity(x) + x)
        x = functional.relu(self.body(x) + self.project(x))
        half = functional.relu(self.halve(x))
        quarter = functional.relu(self.quarter(half))
        full = x
        for path, source in ((self.from_half, half), (self.from_quarter, quarter)):
            full = full + functional.interpolate(path(source), size=size, mode="bilinear")
        up = self.widen(functional.max_pool2d(quarter, 2, ceil_mode=True))
        up = functional.interpolate(up, size=size, mode="bilinear")
        joined = functional.relu(self.before(torch.cat([full, up], dim=1)))
        x = self.behind(joined)
        x = self.twice(torch.relu(self.twice(x)))
        return self.classifier(self.drop(torch.relu(self.mix(self.each(x)))))


def lived(network: nn.Module, *, bands: int, seed: int = 0) -> nn.Module:
    """With scales, shifts and statistics in every norm, and biases, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
                module.weight.uniform_(0.6, 1.5, generator=generator)
                module.bias.normal_(0.1, 0.4, generator=generator)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                module.bias.normal_(0.0, 0.3, generator=generator)
        network.train()
        for _ in range(6):
            network(torch.randn(3, bands, 48, 40, generator=generator) + 0.3)
    return network.eval()


def every_coupling(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return lived(EveryCoupling(), bands=BANDS, seed=seed)


def small_spec(name: str) -> ModelSpec:
    """Of an architecture, or of ``<architecture> <first norm>``."""
    arch, _, norm = name.partition(" ")
    spec = {"arch": arch, "stem_channels": 8, "first_norm": norm or "instance"}
    return ModelSpec.model_validate(spec)


def small(name: str, *, seed: int = 0) -> Network:
    network = build_network(small_spec(name), bands=BANDS, classes=CLASSES, seed=seed)
    lived(network, bands=BANDS, seed=seed)
    return network
