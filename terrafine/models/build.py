"""From the spec's ``model`` section to a network."""

from __future__ import annotations

import re

import torch

from terrafine.errors import ModelError
from terrafine.models.hrnet import HRNet
from terrafine.spec import ModelSpec


def build_network(model: ModelSpec, *, bands: int, classes: int, seed: int = 0) -> HRNet:
    """The network of ``model`` with first weights drawn from ``seed``.

    The same seed gives the same weights, and torch's own random state is left as it was.
    Raises ModelError for an architecture that is not known.
    """
    found = re.fullmatch(r"hrnet_w([1-9][0-9]*)", model.arch)
    if found is None:
        raise ModelError(f"architecture {model.arch!r} is unknown; known: hrnet_w<width>")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return HRNet(
            bands,
            classes,
            width=int(found[1]),
            stem_strides=model.stem_strides,
            first_norm=model.first_norm,
        )
