"""What the default halo keeps out of the core: the bound that docs/mapping.md states."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from terrafine.models import build_network
from terrafine.models.layers import BatchNorm
from terrafine.spec import MappingSpec, ModelSpec

CORE = 64
HALO = MappingSpec().halo
SIDE = 2 * HALO + 7 * CORE


@cache
def network(norm: str) -> torch.nn.Module:
    """An HRNet of the paper's depth, narrow, random, and far more unruly than a trained one."""
    torch.manual_seed(0)
    spec = ModelSpec.model_validate({"arch": "hrnet_w4", "stem_channels": 8, "first_norm": norm})
    built = build_network(spec, bands=4, classes=7)
    for module in built.modules():
        if isinstance(module, BatchNorm):
            torch.nn.init.constant_(module.weight, 0.5)
            module.momentum = None  # the mean over all that passes
    with torch.no_grad():
        for number in range(4):
            built.train()(image(number)[None, :, :256, :256])
    return built.eval()


@cache
def image(seed: int) -> torch.Tensor:
    """(4, SIDE, SIDE): land of patches, brighter towards the south."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(4, SIDE // 16, SIDE // 16)).astype(np.float32)
    patches = coarse.repeat(16, axis=1).repeat(16, axis=2)
    fine = rng.normal(scale=0.3, size=patches.shape).astype(np.float32)
    return torch.from_numpy(patches + fine + np.linspace(-2, 2, SIDE, dtype=np.float32)[:, None])


@cache
def whole(norm: str) -> torch.Tensor:
    with torch.inference_mode():
        return network(norm)(image(9)[None])[0]


def felt(norm: str, halo: int) -> tuple[float, float]:
    """|Δ logit| inside the core in units of the logits' spread (99.9 %), and classes changed."""
    first = (SIDE - CORE) // 2 // 16 * 16
    core, seen = slice(first, first + CORE), slice(first - halo, first + CORE + halo)
    inside = slice(halo, halo + CORE)
    with torch.inference_mode():
        found = network(norm)(image(9)[None, :, seen, seen])[0][:, inside, inside]
    there = whole(norm)[:, core, core]
    apart = float(torch.quantile((found - there).abs(), 0.999) / there.std())
    return apart, float((found.argmax(0) != there.argmax(0)).float().mean())


def test_the_default_halo_keeps_the_windows_edge_out_of_the_core() -> None:
    apart, changed = felt("batch", HALO)
    assert apart < 0.5
    assert changed < 0.03
    assert felt("batch", 0)[0] > 5 * apart, "and without one it is felt"


def test_instance_norm_sees_the_window_whatever_the_halo() -> None:
    assert felt("instance", HALO)[0] > 3 * felt("batch", HALO)[0]


@pytest.mark.parametrize("norm", ["batch", "instance", "instance-batch"])
def test_a_window_over_everything_is_the_whole_image(norm: str) -> None:
    with torch.inference_mode():
        again = network(norm)(image(9)[None])[0]
    torch.testing.assert_close(again, whole(norm))
