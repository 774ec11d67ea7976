"""From the spec's ``model`` section to a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import nn

from terrafine.errors import ModelError
from terrafine.models.channels import Channels, channels_of, resize_layers
from terrafine.models.fcdensenet import FCDenseNet
from terrafine.models.hrnet import HRNet
from terrafine.models.layers import Network
from terrafine.models.unet import UNet
from terrafine.spec import ModelSpec


def _hrnet(model: ModelSpec, bands: int, classes: int, width: int) -> Network:
    return HRNet(
        bands,
        classes,
        width=width,
        stem_strides=model.stem_strides,
        first_norm=model.first_norm,
        stem_channels=model.stem_channels,
    )


def _unet(model: ModelSpec, bands: int, classes: int, width: int) -> Network:
    return UNet(bands, classes, width=width, first_norm=model.first_norm)


def _fcdensenet64(model: ModelSpec, bands: int, classes: int, growth: int) -> Network:
    return FCDenseNet(bands, classes, growth=growth, first_norm=model.first_norm)


# What stands before the number of an architecture -> how it is built with that number.
FAMILIES: Mapping[str, Callable[[ModelSpec, int, int, int], Network]] = {
    "hrnet_w": _hrnet,
    "unet_w": _unet,
    "fcdensenet64_k": _fcdensenet64,
}
KNOWN = "hrnet_w<width>, unet_w<width>, fcdensenet64_k<growth>"


def build_network(
    model: ModelSpec,
    *,
    bands: int,
    classes: int,
    seed: int = 0,
    channels: Channels | None = None,
) -> Network:
    """The network of ``model`` with first weights drawn from ``seed``.

    ``channels``: (in, out) of the layers that a pruning left narrower than the architecture says.
    The same seed gives the same weights, and torch's own random state is left as it was.
    Raises ModelError for an architecture that is not known, and for channels it cannot have.
    """
    found = re.fullmatch(rf"({'|'.join(FAMILIES)})([1-9][0-9]*)", model.arch)
    if found is None:
        raise ModelError(f"architecture {model.arch!r} is unknown; known: {KNOWN}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = FAMILIES[found[1]](model, bands, classes, int(found[2]))
    resize_layers(network, channels or {})
    return network


def changed_channels(network: nn.Module, model: ModelSpec) -> dict[str, tuple[int, int]]:
    """What :func:`build_network` must be told of a pruned network of this architecture."""
    present = channels_of(network)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    bands, classes = convolutions[0].in_channels, convolutions[-1].out_channels
    with torch.device("meta"):
        whole = channels_of(build_network(model, bands=bands, classes=classes))
    return {name: sizes for name, sizes in present.items() if sizes != whole[name]}
