"""The paper's network, in the paper's numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from terrafine.errors import ModelError
from terrafine.models import HRNet, RawInput, RawModel, build_network, describe
from terrafine.models.describe import receptive_field
from terrafine.models.hrnet import Residual
from terrafine.models.layers import BatchNorm
from terrafine.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ModelSpec(arch="hrnet_w2", stem_strides=(2, 2))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny networks lose more to the hand-over between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("classes", "parameters"), [(10, 16_812_946), (7, 16_811_863)])
def test_parameter_count_is_table_5_of_the_paper(classes: int, parameters: int) -> None:
    assert describe("hrnet_w24", 4, classes)["parameters"] == parameters


def test_description_is_that_of_the_paper_and_goes_into_json() -> None:
    found = json.loads(json.dumps(describe("hrnet_w24", 4, 10)))
    assert found["receptive_field"] == 1395
    assert found["output_stride"] == 2
    assert found["macs_per_pixel"] == pytest.approx(427_000, rel=1e-3)
    assert found["activations_per_pixel"] == pytest.approx(2900, rel=0.02)
    # Table 5 prints 130 MB for weights and momentum
    assert found["training_mb"] == pytest.approx(130, rel=0.02)


def test_a_second_strided_convolution_costs_a_quarter_and_sees_twice_as_far() -> None:
    paper, cheap = describe("hrnet_w24", 4, 10), describe("hrnet_w24", 4, 10, (2, 2))
    assert cheap["parameters"] == paper["parameters"]
    assert cheap["macs_per_pixel"] == pytest.approx(107_000, rel=2e-3)
    assert cheap["macs_per_pixel"] * 4 == pytest.approx(paper["macs_per_pixel"], rel=0.01)
    assert cheap["receptive_field"] == 2783
    assert describe("hrnet_w24", 4, 10, (1, 1))["receptive_field"] == 699


def test_description_of_a_narrow_network_matches_the_network_that_is_built() -> None:
    network = HRNet(3, 5, width=4)
    found = describe("hrnet_w4", 3, 5)
    assert found["parameters"] == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("strides", [(2, 1), (2, 2)])
def test_receptive_field_is_what_an_output_really_depends_on(strides: tuple[int, int]) -> None:
    """The convolutions of the deepest path, made one-dimensional, and their gradient looked at."""
    path = list(HRNet(1, 2, width=1, stem_strides=strides).deepest_path())
    chain = nn.Sequential(
        *(
            nn.Conv1d(1, 1, c.kernel_size[0], c.stride[0], c.kernel_size[0] // 2, bias=False)
            for c in path
        )
    ).double()
    for conv in chain:
        # equal weights that sum to 1 keep the gradient within what a float can hold
        nn.init.constant_(conv.weight, 1 / conv.weight.shape[-1])
    line = torch.zeros(1, 1, 8192, dtype=torch.float64, requires_grad=True)
    seen = chain(line)
    seen[0, 0, seen.shape[-1] // 2].backward()
    assert int((line.grad != 0).sum()) == receptive_field(path)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 64)])
def test_any_input_size_gives_logits_of_that_size(
    strides: tuple[int, int], size: tuple[int, int]
) -> None:
    network = HRNet(4, 7, width=2, stem_strides=strides).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 4, *size)).shape == (1, 7, *size)


def test_every_parameter_learns() -> None:
    network = HRNet(4, 3, width=2, stem_strides=(2, 2))
    for module in network.modules():
        # residual blocks start as the identity
        if isinstance(module, BatchNorm):
            nn.init.ones_(module.weight)
    # outputs weighted at random, so that no gradient cancels
    (network(torch.randn(2, 4, 64, 64)) * torch.randn(2, 3, 64, 64)).sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_residual_blocks_start_as_the_identity() -> None:
    network = HRNet(4, 3, width=2).train()
    block = network.stage3.exchanges[0].branches[1][2]
    assert isinstance(block, Residual)
    x = torch.randn(2, 4, 8, 8).abs()
    assert torch.equal(block(x), x)


def test_one_small_crop_can_be_trained_on() -> None:
    """Its coarsest branch is a single pixel, of which torch's batch norm has no variance."""
    network = HRNet(4, 3, width=2, stem_strides=(2, 2)).train()
    coarsest = network.stage4.exchanges[-1].branches[-1][-1].body[0][1]
    assert isinstance(coarsest, BatchNorm)
    before = coarsest.running_mean.clone()
    network(torch.randn(1, 4, 32, 32)).sum().backward()
    assert torch.equal(coarsest.running_mean, before)
    network(torch.randn(2, 4, 32, 32))
    assert not torch.equal(coarsest.running_mean, before)


def test_first_norm_takes_out_a_change_of_brightness_of_one_image() -> None:
    image = torch.randn(1, 4, 64, 64)
    for norm, same in (("instance", True), ("batch", False)):
        network = HRNet(4, 3, width=2, stem_strides=(2, 2), first_norm=norm).eval()
        with torch.no_grad():
            # the border is padded with zeros, which do not brighten with the image
            plain, bright = (network.stem[:3](x)[..., 4:-4, 4:-4] for x in (image, 3 * image))
        assert (float((plain - bright).abs().max()) < 1e-3) == same


def test_half_of_the_channels_do_not_see_a_change_of_brightness_of_one_image() -> None:
    network = HRNet(4, 3, width=2, stem_strides=(2, 2), first_norm="instance-batch").eval()
    image = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        plain, bright = (network.stem[:2](x)[..., 4:-4, 4:-4] for x in (image, 3 * image))
    seen = (plain - bright).abs().amax(dim=(0, 2, 3)) > 1e-3
    assert seen.tolist() == [False] * (len(seen) // 2) + [True] * (len(seen) // 2)


def test_training_shares_the_norms_out_between_all_channels() -> None:
    network = HRNet(4, 3, width=2, first_norm="instance-batch").train()
    (network.stem[:3](torch.randn(2, 4, 32, 32)) ** 2).sum().backward()
    for norm in (network.stem[1].image, network.stem[1].batch):
        assert norm.weight.grad.all()


def test_a_seed_gives_the_same_first_weights_and_leaves_torchs_own_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (build_network(TINY, bands=4, classes=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weights = [n.head[0].weight for n in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "arch", ["unet", "hrnet_w0", "hrnet_w24x", "fcdensenet64", "fcdensenet103_k16"]
)
def test_an_unknown_architecture_is_refused(arch: str) -> None:
    with pytest.raises(ModelError, match=r"model\.arch.*hrnet_w<width>, unet_w<width>"):
        describe(arch, 4, 7)


def test_network_is_one_graph_without_breaks() -> None:
    model = RawModel(RawInput([3.0], [2.0], fill=0), build_network(TINY, bands=1, classes=2)).eval()
    image = torch.randint(0, 9, (1, 1, 32, 32)).to(torch.uint16)
    program = torch.export.export(model, (image,))
    with torch.no_grad():
        assert torch.allclose(program.module()(image), model(image))
