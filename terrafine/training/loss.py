"""Cross entropy over the pixels that have a label."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Target of pixels that do not count; no output index, as a legend has at most 254 classes.
IGNORED = 255


def counted_target(target: Tensor, valid: Tensor) -> Tensor:
    """(N, H, W) uint8 targets -> int64, with missing pixels ignored too."""
    return target.to(torch.int64).masked_fill(~valid, IGNORED)


class WeightedCrossEntropy(nn.Module):
    """Cross entropy with a weight per class (3 on impervious in Dong et al. 2020, section 3.2)."""

    weights: Tensor
    pixel_weights: Tensor

    def __init__(self, class_weights: tuple[float, ...]) -> None:
        super().__init__()
        weights = torch.tensor(class_weights, dtype=torch.float32)
        table = torch.zeros(IGNORED + 1)
        table[: len(weights)] = weights
        self.register_buffer("weights", weights)
        self.register_buffer("pixel_weights", table)

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K, H, W), int64 target (N, H, W) -> (sum of the loss, sum of the weights).

        Both are 0 where no pixel counts; their quotient is the mean that torch would give.
        """
        total = functional.cross_entropy(
            logits.float(), target, self.weights, ignore_index=IGNORED, reduction="sum"
        )
        return total, self.pixel_weights[target].sum()
