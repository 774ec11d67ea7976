"""The channels of a network's layers: telling them, and keeping only some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from terrafine.errors import ModelError

Convolution = nn.Conv2d | nn.ConvTranspose2d
# (in, out) of a convolution; a norm has as many in as out
Channels = Mapping[str, tuple[int, int]]

_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def layers_of(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every layer that has channels: convolutions and norms."""
    for name, module in network.named_modules():
        if isinstance(module, Convolution) or hasattr(module, "num_features"):
            yield name, module


def channels_of(network: nn.Module) -> dict[str, tuple[int, int]]:
    """(in, out) channels of every convolution and norm."""
    return {name: _sizes(module) for name, module in layers_of(network)}


def keep_channels(module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Leave a layer only the channels at these indexes, in place; of a norm, those of ``outputs``.

    Grouped convolutions are not served.
    """
    if isinstance(module, Convolution):
        assert module.groups == 1, "a grouped convolution's channels are never pruned"
        places = (inputs, outputs) if module.transposed else (outputs, inputs)
        weight = module.weight.detach()
        module.weight = nn.Parameter(weight.index_select(0, places[0]).index_select(1, places[1]))
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.detach().index_select(0, outputs))
        module.in_channels, module.out_channels = len(inputs), len(outputs)
        return
    for name in _NORM_TENSORS:
        value = getattr(module, name, None)
        if value is not None:
            kept = value.detach().index_select(0, outputs)
            setattr(module, name, nn.Parameter(kept) if name in ("weight", "bias") else kept)
    module.num_features = len(outputs)  # type: ignore[assignment]


def resize_layers(network: nn.Module, channels: Channels) -> None:
    """Make the named layers as narrow as ``channels`` says, in place; the first ones are kept.

    Raises ModelError for a layer that the network has not, and for numbers it cannot have.
    """
    layers = dict(layers_of(network))
    for name, sizes in channels.items():
        if name not in layers:
            raise ModelError(f"the network has no layer {name!r}, whose channels are given")
        present = _sizes(layers[name])
        if not all(1 <= n <= most for n, most in zip(sizes, present, strict=True)):
            raise ModelError(
                f"layer {name!r} cannot have {sizes[0]} channels in and {sizes[1]} out; it has at "
                f"most {present[0]} and {present[1]}, and at least 1"
            )
        inputs, outputs = (torch.arange(n, device=_device(layers[name])) for n in sizes)
        keep_channels(layers[name], inputs, outputs)


def _sizes(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Convolution):
        return module.in_channels, module.out_channels
    features = module.num_features
    assert isinstance(features, int), "norms tell their number of channels"
    return features, features


def _device(module: nn.Module) -> torch.device:
    first: Tensor = next(module.parameters())
    return first.device
