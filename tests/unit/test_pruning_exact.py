"""Pruning: the compact network computes what the zeroed one does, and can be rebuilt from data."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from terrafine.errors import ModelError, PruningError
from terrafine.models import build_network, changed_channels
from terrafine.pruning import (
    PruningPlan,
    plan_pruning,
    pruned_layers,
    removed_channels,
    without_zeroed,
    zero_filters,
)
from terrafine.spec import ModelSpec, PruneSpec
from tests.unit.pruned import BANDS, CLASSES, every_coupling, small, small_spec

ARCHS = ("hrnet_w4", "unet_w4", "unet_w4 instance-batch", "fcdensenet64_k3")
FORTY = PruneSpec(ratio=0.4)


def made(name: str) -> nn.Module:
    return every_coupling() if name == "every coupling" else small(name)


def pruned(network: nn.Module, spec: PruneSpec) -> tuple[nn.Module, nn.Module, PruningPlan]:
    """(zeroed, compact, plan)"""
    plan = plan_pruning(network, spec, bands=BANDS)
    zeroed = copy.deepcopy(network)
    zero_filters(zeroed, plan)
    return zeroed, without_zeroed(zeroed, plan), plan


def image(height: int = 48, width: int = 64) -> Tensor:
    return torch.randn(2, BANDS, height, width, generator=torch.Generator().manual_seed(5))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("coupled", [False, True], ids=["not coupled", "coupled"])
@pytest.mark.parametrize("name", ["every coupling", *ARCHS])
def test_the_compact_network_computes_what_the_zeroed_one_does(name: str, coupled: bool) -> None:
    network = made(name)
    zeroed, compact, _ = pruned(network, PruneSpec(ratio=0.4, coupled=coupled))
    assert parameters(compact) < 0.8 * parameters(network)
    with torch.inference_mode():
        for x in (image(), image(35, 49)):
            expected, found = zeroed(x), compact(x)
            assert found.shape == (*expected.shape,)
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
            assert not torch.allclose(network(x), expected, rtol=0.01), "zeroing shows"


@pytest.mark.parametrize("coupled", [False, True], ids=["not coupled", "coupled"])
@pytest.mark.parametrize("name", ["every coupling", *ARCHS])
def test_the_record_names_the_filters_that_went_and_those_left_are_the_others(
    name: str, coupled: bool
) -> None:
    network = made(name)
    zeroed, compact, plan = pruned(network, PruneSpec(ratio=0.4, coupled=coupled))
    gone = removed_channels(zeroed, plan)
    layers = pruned_layers(plan, gone)
    assert sum(layer.removed for layer in layers) > 0
    for layer in layers:
        assert layer.filters is not None
        assert len(layer.filters) == layer.removed
        whole, left = (n.get_submodule(layer.layer).weight for n in (zeroed, compact))
        if getattr(zeroed.get_submodule(layer.layer), "transposed", False):
            whole, left = whole.transpose(0, 1), left.transpose(0, 1)
        assert not whole[list(layer.filters)].any()
        stay = [i for i in range(layer.before) if i not in layer.filters]
        read = np.flatnonzero(~np.isin(plan.map.inputs[layer.layer], gone))
        of_one = read if whole.shape[1] > 1 else [0]
        assert torch.equal(left, whole[stay][:, of_one])


@pytest.mark.parametrize("name", ["every coupling", "hrnet_w4"])
def test_training_on_from_either_is_the_same(name: str) -> None:
    """Batch statistics of the channels left do not know of those that are gone."""
    zeroed, compact, _ = pruned(made(name), PruneSpec(ratio=0.4, coupled=True))
    for network in (zeroed, compact):
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    expected, found = zeroed.train()(image()), compact.train()(image())
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_channel_that_was_zeroed_is_zero_wherever_it_is_read() -> None:
    """Even at a border, where a constant would meet padding."""
    network = every_coupling()
    zeroed, compact, plan = pruned(network, PruneSpec(ratio=0.4, coupled=True))
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        seen[names[module]] = inputs[0]

    names = {m: n for n, m in zeroed.named_modules() if n in plan.map.inputs}
    for module in names:
        module.register_forward_hook(look)
    with torch.inference_mode():
        zeroed(image())
    gone = 0
    for name, read in seen.items():
        left = compact.get_submodule(name).in_channels
        zero = (read == 0).transpose(0, 1).flatten(1).all(dim=1)
        assert int((~zero).sum()) <= left, name
        gone += read.shape[1] - left
    assert gone > 20


@pytest.mark.parametrize("name", ARCHS)
def test_a_compact_network_is_rebuilt_from_its_channels(name: str) -> None:
    model = small_spec(name)
    _, compact, _ = pruned(small(name), PruneSpec(ratio=0.4, coupled=True))
    channels = changed_channels(compact, model)
    rebuilt = build_network(model, bands=BANDS, classes=CLASSES, channels=channels)
    rebuilt.load_state_dict(compact.state_dict())
    with torch.inference_mode():
        assert torch.equal(rebuilt.eval()(image()), compact(image()))
    assert changed_channels(small(name), model) == {}


def test_a_compact_network_can_be_pruned_again() -> None:
    _, once, _ = pruned(small("hrnet_w4"), FORTY)
    zeroed, twice, _ = pruned(once, PruneSpec(ratio=0.3, coupled=True))
    assert parameters(twice) < parameters(once)
    with torch.inference_mode():
        assert torch.allclose(twice(image()), zeroed(image()), atol=1e-4)


def test_filters_that_came_back_are_not_removed() -> None:
    network = every_coupling()
    plan = plan_pruning(network, FORTY, bands=BANDS)
    with pytest.raises(PruningError, match=r"identity.0.0: 2 of its filters .* only 0 are zero"):
        without_zeroed(network, plan)


def test_zeroing_twice_takes_the_same_filters() -> None:
    network = every_coupling()
    zeroed, compact, plan = pruned(network, FORTY)
    zero_filters(zeroed, plan)
    again = without_zeroed(zeroed, plan)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), compact.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        ({"stem.9": (3, 3)}, "no layer 'stem.9'"),
        ({"stem.0": (3, 9)}, "cannot have 3 channels in and 9 out; it has at most 3 and 8"),
        ({"stem.0": (3, 0)}, "at least 1"),
    ],
)
def test_channels_that_no_network_can_have(channels: dict[str, tuple[int, int]], says: str) -> None:
    model = ModelSpec(arch="hrnet_w4", stem_channels=8)
    with pytest.raises(ModelError, match=says):
        build_network(model, bands=BANDS, classes=CLASSES, channels=channels)
