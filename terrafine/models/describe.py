"""What a network costs and how far it sees, measured without allocating it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from terrafine.errors import ModelError
from terrafine.models.build import KNOWN, build_network
from terrafine.models.channels import Channels
from terrafine.models.hrnet import STEM_CHANNELS, HRNet, Strides
from terrafine.models.layers import Sliding
from terrafine.spec import FirstNorm, ModelSpec

# Cost per pixel does not depend on the size as long as every branch divides it.
MEASURED_SIZE = 512
BYTES_PER_NUMBER = 4
MEBI = 2**20


def describe(
    arch: str,
    bands: int,
    classes: int,
    stem_strides: Strides = (2, 1),
    first_norm: FirstNorm = "instance",
    stem_channels: int = STEM_CHANNELS,
) -> dict[str, Any]:
    """Size, cost and reach of a network, as numbers that go into JSON.

    ``parameters`` counts what is trained. ``macs_per_pixel`` (multiply-accumulates of the
    convolutions) and ``activations_per_pixel`` (numbers that the convolutions read and write once
    each, the floor of memory traffic with norms and ReLU fused) are per pixel of a 512 x 512
    input. ``receptive_field`` is in input pixels: of HRNet along its coarsest branch, of the
    others down to the coarsest level and up to the output; ``output_stride`` is input pixels per
    pixel of the finest features. ``weights_mb`` and ``training_mb`` (weights and SGD's momentum,
    as in the paper's Table 5) are MiB in float32. The stem's options are HRNet's alone.
    Raises ModelError when there is no such network.
    """
    model = _checked(arch, stem_strides, first_norm, stem_channels)
    return describe_spec(model, bands=bands, classes=classes)


def describe_spec(
    model: ModelSpec, *, bands: int, classes: int, channels: Channels | None = None
) -> dict[str, Any]:
    """:func:`describe` of a spec's ``model`` section, and of what a pruning left of it.

    ``channels``: as :func:`build_network` takes them; ``pruned_layers`` counts them then.
    """
    with torch.device("meta"):
        network = build_network(model, bands=bands, classes=classes, channels=channels).eval()
        image = torch.empty(1, bands, MEASURED_SIZE, MEASURED_SIZE)
    macs, activations = _traffic(network, image)
    parameters = sum(p.numel() for p in network.parameters())
    megabytes = parameters * BYTES_PER_NUMBER / MEBI
    stem = {"stem_strides": list(model.stem_strides), "stem_channels": model.stem_channels}
    return {
        "arch": model.arch,
        "bands": bands,
        "classes": classes,
        **(stem if isinstance(network, HRNet) else {}),
        "first_norm": model.first_norm,
        **({"pruned_layers": len(channels)} if channels else {}),
        "parameters": parameters,
        "macs_per_pixel": round(macs / MEASURED_SIZE**2),
        "activations_per_pixel": round(activations / MEASURED_SIZE**2),
        "receptive_field": receptive_field(network.deepest_path()),
        "output_stride": network.output_stride,
        "weights_mb": round(megabytes, 2),
        "training_mb": round(2 * megabytes, 2),
    }


def receptive_field(path: Iterable[Sliding]) -> int:
    """Input pixels a side that one value at the end of a chain of square operations depends on.

    Behind an up-sampling the values see unequally many, by where they lie over the coarse pixels:
    the largest number counts.
    """
    parts = list(path)
    phases = math.prod(_side(part.stride) for part in parts if not _widens(part))
    return max(_seen(parts, place) for place in range(phases))


def _seen(parts: Sequence[Sliding], place: int) -> int:
    first = last = place
    for part in reversed(parts):
        kernel, stride, padding = (_side(n) for n in (part.kernel_size, part.stride, part.padding))
        if _widens(part):
            first, last = -((kernel - 1 - first) // stride), last // stride
        else:
            first = first * stride - padding
            last = last * stride - padding + (kernel - 1) * _side(part.dilation)
    return last - first + 1


def _widens(part: Sliding) -> bool:
    return isinstance(part, nn.ConvTranspose2d)


def _checked(
    arch: str, stem_strides: Strides, first_norm: FirstNorm, stem_channels: int
) -> ModelSpec:
    try:
        return ModelSpec(
            arch=arch,
            stem_strides=stem_strides,
            first_norm=first_norm,
            stem_channels=stem_channels,
        )
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"][:1])
        raise ModelError(
            f"model.{key}: {error.errors()[0]['input']!r} is no choice; an architecture reads "
            f"{KNOWN}, stem strides are 1 or 2, stem channels at least 4, the first norm is one "
            f"of {', '.join(get_args(FirstNorm))}"
        ) from error


def _side(size: int | str | tuple[int, ...]) -> int:
    if isinstance(size, tuple):
        return size[0]
    assert isinstance(size, int), "padding is given in pixels here"
    return size


def _traffic(network: nn.Module, image: Tensor) -> tuple[int, int]:
    """Multiply-accumulates of one forward pass, and numbers moved by its convolutions."""
    moved = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += inputs[0].numel() + output.numel()

    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
    hooks = [m.register_forward_hook(count) for m in convolutions]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    # a multiply-accumulate is two floating-point operations
    return counter.get_total_flops() // 2, moved
