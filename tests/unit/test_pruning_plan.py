"""Pruning: which filters go, how many of each layer, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch_pruning
from torch import nn

from terrafine.errors import PruningError
from terrafine.pruning import (
    Group,
    PruningPlan,
    median_distances,
    nearest_to_median,
    plan_pruning,
    trace_channels,
)
from terrafine.pruning.plan import fits
from terrafine.spec import PruneSpec
from tests.unit.pruned import BANDS, CLASSES, every_coupling, small

ARCHS = ("hrnet_w4", "unet_w4", "fcdensenet64_k3")


def group_of(plan: PruningPlan, layer: str) -> Group:
    return next(group for group in plan.groups if layer in group.layers)


def plan(arch: str = "hrnet_w4", **spec: object) -> PruningPlan:
    return plan_pruning(small(arch), PruneSpec(**spec), bands=BANDS)  # type: ignore[arg-type]


def test_distance_to_the_others_is_the_papers_equation_one() -> None:
    filters = np.random.default_rng(1).normal(size=(7, 18))
    expected = [sum(math.dist(a, b) for b in filters) for a in filters]
    assert np.allclose(median_distances(torch.from_numpy(filters)).numpy(), expected, rtol=1e-12)


def test_a_filter_of_the_other_sign_is_far_away() -> None:
    """torch-pruning's own FPGM takes absolute values, to which these two are the same."""
    filters = torch.tensor([[1.0, 2.0], [1.1, 2.0], [-1.0, -2.0], [0.9, 2.0]])
    assert nearest_to_median(filters, 3).tolist() == [0, 1, 3]


def test_of_equal_filters_the_first_goes() -> None:
    filters = torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    filters[[2, 5, 8]] = filters.mean(dim=0)
    assert nearest_to_median(filters, 2).tolist() == [2, 5]


def test_what_was_zeroed_before_goes_first() -> None:
    """Though a cluster away from zero is nearer to its own median."""
    filters = 5 + 0.01 * torch.randn(10, 9, generator=torch.Generator().manual_seed(0))
    filters[7] = 0.0
    assert 7 in nearest_to_median(filters, 1)


@pytest.mark.parametrize("name", ["every coupling", *ARCHS])
def test_channels_belong_together_as_torch_pruning_finds(name: str) -> None:
    network = every_coupling() if name == "every coupling" else small(name)
    found = trace_channels(network, BANDS)
    graph = torch_pruning.DependencyGraph().build_dependency(
        network, example_inputs=torch.randn(1, BANDS, 32, 32)
    )
    layers = {module: name for name, module in network.named_modules()}
    checked = 0
    for group in graph.get_all_groups():
        if any(getattr(item.dep.target.module, "groups", 1) > 1 for item in group):
            continue  # torch-pruning can cut a depthwise convolution, here it stays whole
        for item in group:
            if item.dep.target.module not in layers:
                continue
            name = layers[item.dep.target.module]
            reads = "in_channels" in item.dep.handler.__name__
            table: Mapping[str, np.ndarray] = found.outputs
            if name in found.norms:
                table = found.norms
            elif reads:
                table = found.inputs
            root = layers[group[0].dep.target.module]
            # channel by channel: the same one as that of the group's first layer
            assert found.outputs[root][item.root_idxs].tolist() == (
                table[name][item.idxs].tolist()
            ), f"{root} -> {name}"
            checked += 1
    assert checked > len(found.outputs)


@pytest.mark.parametrize(
    ("filters", "ratio", "round_to", "left"),
    [(10, 0.4, 1, 6), (100, 0.29, 1, 71), (24, 0.4, 8, 16), (48, 0.4, 8, 32), (3, 0.99, 1, 1),
     (12, 0.4, 8, 8), (12, 0.1, 8, 12), (5, 0.5, 16, 5), (64, 0.4, 16, 48)],
)  # fmt: skip
def test_how_many_filters_are_left(filters: int, ratio: float, round_to: int, left: int) -> None:
    network = nn.Sequential(nn.Conv2d(BANDS, filters, 3), nn.ReLU(), nn.Conv2d(filters, 2, 1))
    made = plan_pruning(network, PruneSpec(ratio=ratio, round_to=round_to), bands=BANDS)
    assert [group.left for group in made.groups] == [left, 2]


def test_input_bands_and_classes_stay() -> None:
    made = plan(ratio=0.9, coupled=True)
    assert group_of(made, "head.3").remove == 0
    assert group_of(made, "head.3").why == "makes a class of the output"
    assert made.map.inputs["stem.0"].tolist() == list(range(BANDS))
    assert all(group.left >= 1 for group in made.groups)


def test_the_paper_leaves_the_last_layers_before_a_fusion_whole() -> None:
    made = plan(ratio=0.4)
    fusion = "stage3.exchanges.1.fusion.paths"
    for layer in (f"{fusion}.0.2.0", f"{fusion}.2.0.1.0", "stage1.0.body.2.0"):
        group = group_of(made, layer)
        assert (group.remove, group.why) == (0, "last before a sum with other layers"), layer
    for layer in (f"{fusion}.2.0.0.0", "stage1.0.body.0.0", "stem.0", "stem.3.0", "head.0"):
        group = group_of(made, layer)
        assert (group.layers, group.why) == ((layer,), "ratio 0.4")
        assert group.remove == int(0.4 * len(group.channels))


def test_a_branch_of_hrnet_is_one_group_where_coupled_channels_are_pruned() -> None:
    made = plan(ratio=0.4, coupled=True)
    group = group_of(made, "stage2.transitions.0.0")
    assert len(group.channels) == 4
    assert group.left == 3
    assert "stage4.exchanges.2.fusion.paths.0.3.0" in group.layers
    assert "stage3.exchanges.0.branches.0.1.body.1.0" in group.layers


def test_every_part_can_have_its_own_ratio() -> None:
    made = plan(ratio=0.4, stage_ratios={"stage?": 0.25, "stage4": 0.5, "head": 0.0}, coupled=True)
    assert group_of(made, "stem.0").why == "ratio 0.4"
    assert group_of(made, "stage1.0.body.0.0").why == "ratio 0.25"
    assert group_of(made, "stage4.exchanges.0.branches.2.0.body.0.0").why == "ratio 0.5"
    assert group_of(made, "head.0").remove == 0
    # a branch that runs through stages 3 and 4 takes the smaller of their ratios
    branch = group_of(made, "stage4.exchanges.0.branches.2.0.body.1.0")
    assert branch.why == (f"ratio 0.25, the smallest of its coupled layers ({branch.layers[0]})")
    assert branch.layers[0].startswith("stage3.")


def test_a_part_that_another_holds_back_says_which_layer_does() -> None:
    made = plan(stage_ratios={"stage4": 0.75}, coupled=True)
    held = group_of(made, "stage4.exchanges.2.fusion.paths.0.3.0")
    assert held.remove == 0
    assert held.why == "ratio 0, the smallest of its coupled layers (stage2.transitions.0.0)"
    assert group_of(made, "stage1.0.body.0.0").why == "ratio 0", "it asked for no more"


def test_the_ways_down_and_up_of_unet() -> None:
    made = plan("unet_w4", stage_ratios={"down": 0.5, "up": 0.25})
    assert group_of(made, "down.2.0.0").left == 8
    assert group_of(made, "up.1.0.0").left == 12
    assert group_of(made, "widen.0").remove == 0


def test_a_layer_that_is_left_out_keeps_all_its_filters_with_those_it_is_added_to() -> None:
    made = plan(ratio=0.4, coupled=True, exclude=("stem", "stage4.exchanges.2.fusion.paths.1.*"))
    assert group_of(made, "stem.0").why == "prune.exclude stem"
    branch = group_of(made, "stage2.exchanges.0.branches.1.0.body.1.0")
    assert branch.remove == 0
    assert branch.why.startswith("prune.exclude stage4.exchanges.2.fusion.paths.1.* (stage4.")


@pytest.mark.parametrize("spec", [{"exclude": ("stagee1",)}, {"stage_ratios": {"down": 0.3}}])
def test_a_pattern_that_fits_nothing_is_told(spec: dict[str, object]) -> None:
    with pytest.raises(PruningError, match=r"fits no layer .* stem, stage1, stage2"):
        plan(ratio=0.4, **spec)


def test_a_pattern_fits_a_layer_or_what_it_lies_in() -> None:
    assert fits("stage1.0.body", "stage1")
    assert fits("stage1.0.body", "stage?.0.*")
    assert not fits("stage10.body", "stage1")


class Turning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(BANDS, 4, 3)
        self.classifier = nn.Conv2d(4, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = self.classifier(self.first(x).flip(1))
        return turned


def test_an_operation_that_is_not_known_is_not_guessed_at() -> None:
    with pytest.raises(PruningError, match="the network calls flip, whose effect"):
        plan_pruning(Turning(), PruneSpec(ratio=0.4), bands=BANDS)
