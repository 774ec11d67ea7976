"""Cross entropy over the pixels that have a label."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from terrafine.spec import TrainingSpec

# Target of pixels that do not count; no output index, as a legend has at most 254 classes.
IGNORED = 255


def counted_target(target: Tensor, valid: Tensor) -> Tensor:
    """(N, H, W) uint8 targets -> int64, with missing pixels ignored too."""
    return target.to(torch.int64).masked_fill(~valid, IGNORED)


Confusion = tuple[tuple[float, ...], ...]


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


def mean_around(probability: Tensor, window: int) -> Tensor:
    """(N, K, H, W) -> the mean of the ``window`` x ``window`` pixels around, fewer at the rim."""
    return functional.avg_pool2d(
        probability, window, stride=1, padding=window // 2, count_include_pad=False
    )


class CoarseCrossEntropy(WeightedCrossEntropy):
    """Cross entropy of labels that are coarser than the image.

    A label says what most of the ground around it is, not what each pixel is. So it is held
    against the mean probability of the ``window`` x ``window`` pixels around (fewer at the rim):
    minus the logarithm of that mean. A road one pixel wide may then be a road inside fields that
    the label calls cropland, at a fraction of the price that cross entropy would ask. Follows the
    idea of label super-resolution (Malkin et al. 2019), where coarse labels say something of the
    mixture below them, without its table of mixtures.

    ``confusion``: what is known of how the labels err, row = true class, column = what the label
    says, each row summing to 1. The mean probabilities then go through it before they are held
    against the label (forward correction, Patrini et al. 2017): the network need not learn to
    say cropland where a third of the grassland is labelled so.
    """

    confusion: Tensor | None

    def __init__(
        self, class_weights: tuple[float, ...], window: int, confusion: Confusion | None = None
    ) -> None:
        super().__init__(class_weights)
        self.window = window
        table = None if confusion is None else torch.tensor(confusion, dtype=torch.float32)
        self.register_buffer("confusion", table)

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """As :class:`WeightedCrossEntropy`."""
        around = mean_around(logits.float().softmax(dim=1), self.window)
        if self.confusion is not None:
            around = torch.einsum("nkhw,kl->nlhw", around, self.confusion)
        # the floor is far below what float32 can tell from 0 in a mean of a few probabilities
        surprise = around.clamp_min(1e-6).log().contiguous()
        total = functional.nll_loss(
            surprise, target, self.weights, ignore_index=IGNORED, reduction="sum"
        )
        return total, self.pixel_weights[target].sum()


def training_loss(
    spec: TrainingSpec, class_weights: tuple[float, ...], confusion: Confusion | None = None
) -> nn.Module:
    """The loss that ``spec`` asks for: (logits, target) -> (sum, weight), 0-dimensional.

    ``confusion``: of the labels, as in :class:`CoarseCrossEntropy`, None where it is not to count.

    Sums and weights are added up over the crops of a step before the one is divided by the other;
    no gradient goes through the weight.
    """
    if spec.label_window == 1 and confusion is None:
        return WeightedCrossEntropy(class_weights)
    return CoarseCrossEntropy(class_weights, spec.label_window, confusion)
