"""Raw sensor numbers in, logits out: scaling and missing pixels are part of the network.

Training, export and inference run this one code path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terrafine.errors import ModelError


class RawInput(nn.Module):
    """Scaling of raw windows, and which of their pixels are missing.

    Parameters: ``mean_C`` and ``std_C`` of every band over the valid training pixels, in the
    sensor's raw numbers; ``fill``, the raw number that marks a missing pixel. A pixel is missing
    where any band equals ``fill``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean_C: Sequence[float], std_C: Sequence[float], fill: int) -> None:
        super().__init__()
        if len(mean_C) != len(std_C) or not mean_C:
            raise ModelError(
                f"{len(mean_C)} band means and {len(std_C)} standard deviations; "
                "give one of each for every band"
            )
        for band, (mean, std) in enumerate(zip(mean_C, std_C, strict=True), start=1):
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise ModelError(
                    f"band {band} has mean {mean:g} and standard deviation {std:g} over the "
                    "training chips, which cannot scale it; leave a constant band out of "
                    "imagery.bands, or use other chips"
                )
        if not 0 <= fill <= 65535:
            raise ModelError(f"fill {fill} is no uint16 number; give one in 0..65535")
        self.fill = int(fill)
        self.register_buffer("mean", torch.tensor(mean_C, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std_C, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Raw windows (N, C, H, W), uint16, int32 or float32 -> (scaled float32, valid (N, H, W)).

        Missing pixels take the mean of their window's valid ones in every band (0, the mean of
        the training chips, where the whole window is missing), so that they lead the instance
        norm astray as little as can be.
        """
        # uint16 knows few operations; every uint16 number is exact in float32.
        numbers = image.to(torch.float32)
        valid = (numbers != float(self.fill)).all(dim=1, keepdim=True)
        scaled = (numbers - self.mean) / self.std
        # where, not multiplication: a raw number times zero could still be NaN in float input
        kept = torch.where(valid, scaled, 0.0)
        count = valid.to(torch.float32).sum(dim=(2, 3), keepdim=True).clamp(min=1.0)
        window_mean = kept.sum(dim=(2, 3), keepdim=True) / count
        return torch.where(valid, scaled, window_mean), valid.squeeze(1)


class RawModel(nn.Module):
    """A network behind its :class:`RawInput`: what is trained, saved, exported and served."""

    def __init__(self, raw: RawInput, network: nn.Module) -> None:
        super().__init__()
        self.raw = raw
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Raw windows (N, C, H, W) -> logits (N, classes, H, W)."""
        scaled, _ = self.raw(image)
        logits: Tensor = self.network(scaled)
        return logits

    def logits_and_valid(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Raw windows -> (logits (N, classes, H, W), valid (N, H, W) bool), scaled once."""
        scaled, valid = self.raw(image)
        return self.network(scaled), valid

    def valid(self, image: Tensor) -> Tensor:
        """Raw windows -> (N, H, W) bool, False where a pixel is missing."""
        valid: Tensor = self.raw(image)[1]
        return valid
