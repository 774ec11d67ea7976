"""What a network costs and how far it sees, measured without allocating it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from terrafine.errors import ModelError
from terrafine.models.build import build_network
from terrafine.models.hrnet import FirstNorm, Strides
from terrafine.spec import ModelSpec

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
) -> dict[str, Any]:
    """Size, cost and reach of a network, as numbers that go into JSON.

    ``parameters`` counts what is trained. ``macs_per_pixel`` (multiply-accumulates of the
    convolutions) and ``activations_per_pixel`` (numbers that the convolutions read and write once
    each, the floor of memory traffic with norms and ReLU fused) are per pixel of a 512 x 512
    input. ``receptive_field`` is in input pixels along the coarsest branch; ``output_stride`` is
    input pixels per pixel of the finest branch. ``weights_mb`` and ``training_mb`` (weights and
    SGD's momentum, as in the paper's Table 5) are MiB in float32.
    Raises ModelError when there is no such network.
    """
    try:
        model = ModelSpec(arch=arch, stem_strides=stem_strides, first_norm=first_norm)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"][:1])
        raise ModelError(
            f"model.{key}: {error.errors()[0]['input']!r} is no choice; an architecture reads "
            f"hrnet_w<width>, stem strides are 1 or 2, the first norm is one of "
            f"{', '.join(get_args(FirstNorm))}"
        ) from error
    with torch.device("meta"):
        network = build_network(model, bands=bands, classes=classes).eval()
        image = torch.empty(1, bands, MEASURED_SIZE, MEASURED_SIZE)
    macs, activations = _traffic(network, image)
    parameters = sum(p.numel() for p in network.parameters())
    megabytes = parameters * BYTES_PER_NUMBER / MEBI
    return {
        "arch": arch,
        "bands": bands,
        "classes": classes,
        "stem_strides": list(stem_strides),
        "first_norm": first_norm,
        "parameters": parameters,
        "macs_per_pixel": round(macs / MEASURED_SIZE**2),
        "activations_per_pixel": round(activations / MEASURED_SIZE**2),
        "receptive_field": receptive_field(network.deepest_path()),
        "output_stride": network.output_stride,
        "weights_mb": round(megabytes, 2),
        "training_mb": round(2 * megabytes, 2),
    }


def receptive_field(path: Iterable[nn.Conv2d]) -> int:
    """Input pixels a side that one output of a chain of square convolutions depends on."""
    seen, step = 1, 1
    for conv in path:
        seen += (conv.kernel_size[0] - 1) * conv.dilation[0] * step
        step *= conv.stride[0]
    return seen


def _traffic(network: nn.Module, image: Tensor) -> tuple[int, int]:
    """Multiply-accumulates of one forward pass, and numbers moved by its convolutions."""
    moved = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += inputs[0].numel() + output.numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    # a multiply-accumulate is two floating-point operations
    return counter.get_total_flops() // 2, moved
