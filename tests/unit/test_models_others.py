"""U-Net and FC-DenseNet64, the networks that Table 4 of the paper compares HRNet with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from terrafine.errors import ModelError
from terrafine.export import BundleInfo, export_model, load_bundle, save_bundle
from terrafine.legend import SEVEN
from terrafine.models import (
    FCDenseNet,
    HRNet,
    Network,
    UNet,
    build_network,
    describe,
    describe_spec,
)
from terrafine.models.describe import receptive_field
from terrafine.models.layers import BatchNorm
from terrafine.spec import ExportSpec, ModelSpec
from tests.exported import images, random_model

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "unet": ModelSpec(arch="unet_w4"),
    "fcdensenet": ModelSpec(arch="fcdensenet64_k2"),
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny networks lose more to the hand-over between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=list(TINY))
def model(request: pytest.FixtureRequest) -> ModelSpec:
    return TINY[request.param]


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 47), (65, 64)])
def test_any_input_size_gives_logits_of_that_size(model: ModelSpec, size: tuple[int, int]) -> None:
    network = build_network(model, bands=4, classes=7).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 4, *size)).shape == (1, 7, *size)


@pytest.mark.parametrize("size", [(16, 16), (33, 19)])
def test_one_crop_can_be_trained_on_and_every_parameter_learns(
    model: ModelSpec, size: tuple[int, int]
) -> None:
    """The coarsest level of 16 pixels is one pixel, of which torch's batch norm has no variance."""
    # one pixel behind a few ReLUs may well be zero
    torch.manual_seed(0)
    network = build_network(model, bands=4, classes=3).train()
    (network(torch.randn(1, 4, *size)) * torch.randn(1, 3, *size)).sum().backward()
    # a convolution's bias before a norm does nothing, and FC-DenseNet has one at its first
    silent = [
        name
        for name, p in network.named_parameters()
        if (p.grad is None or not p.grad.any()) and name != "first.0.bias"
    ]
    assert not silent


def test_a_seed_gives_the_same_first_weights(model: ModelSpec) -> None:
    first, again, other = (
        build_network(model, bands=4, classes=3, seed=s).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_first_logits_are_no_opinion(model: ModelSpec) -> None:
    network = build_network(model, bands=4, classes=7).train()
    with torch.no_grad():
        assert float(network(torch.randn(2, 4, 32, 32)).abs().max()) < 1


def test_the_first_norm_is_the_only_difference_that_the_option_makes(model: ModelSpec) -> None:
    norms = {
        norm: [
            type(m)
            for m in build_network(
                model.model_copy(update={"first_norm": norm}), bands=4, classes=3
            ).modules()
            if isinstance(m, nn.InstanceNorm2d | BatchNorm)
        ]
        for norm in ("instance", "batch", "instance-batch")
    }
    assert norms["instance"][0] is nn.InstanceNorm2d
    assert norms["batch"][0] is BatchNorm
    assert set(norms["instance-batch"][:2]) == {nn.InstanceNorm2d, BatchNorm}
    rest = [BatchNorm] * (len(norms["batch"]) - 1)
    assert norms["instance"][1:] == norms["batch"][1:] == norms["instance-batch"][2:] == rest


@pytest.mark.parametrize(("blocks", "growth", "millions"), [
    ((5, 5, 5, 5, 5, 5), 16, 3.5),
    ((4, 5, 7, 10, 12, 15), 16, 9.4),
])  # fmt: skip
def test_the_published_fc_densenets_have_their_published_size(
    blocks: tuple[int, ...], growth: int, millions: float
) -> None:
    """Table 4 of Jegou et al. 2017 for FC-DenseNet67 and 103: the layout is theirs."""
    with torch.device("meta"):
        network = FCDenseNet(3, 11, growth=growth, blocks=blocks)
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.02)


def test_fc_densenet64_has_64_layers_as_its_authors_count_them() -> None:
    with torch.device("meta"):
        network = FCDenseNet(4, 10)
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    assert sum(isinstance(m, kinds) for m in network.modules()) == 64


def test_unet_has_the_published_levels() -> None:
    with torch.device("meta"):
        network = UNet(4, 10)
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024, 512, 512, 256, 256, 128,
                      128, 64, 64, 10]  # fmt: skip
    # 31.03 M is what everybody reports for this layout
    assert describe("unet_w64", 1, 2)["parameters"] == pytest.approx(31.03e6, rel=1e-3)


@pytest.mark.parametrize(
    ("network", "reach"), [(lambda: UNet(1, 2, 1, "batch"), 204),
                           (lambda: FCDenseNet(1, 2, 1, "batch"), 598)]
)  # fmt: skip
def test_receptive_field_is_what_an_output_really_depends_on(
    network: Callable[[], Network], reach: int
) -> None:
    """The gradient of outputs at every other place over a coarse pixel of sixteen."""
    built = network().double().eval()
    assert receptive_field(built.deepest_path()) == reach
    for module in built.modules():
        # all weights positive, so that no two ways to a pixel cancel
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            assert module.bias is None or nn.init.ones_(module.bias) is not None
    # the largest pixel alone would get the gradient
    built.pool = nn.AvgPool2d(2, ceil_mode=True)
    image = torch.ones(1, 1, 16, 704, dtype=torch.float64, requires_grad=True)
    row = built(image)[0, 0, 8]
    widths = []
    for place in range(336, 352, 2):
        (gradient,) = torch.autograd.grad(row[place], image, retain_graph=True)
        columns = gradient[0, 0].any(dim=0).nonzero()
        widths.append(int(columns.max() - columns.min()) + 1)
    assert max(widths) == reach


def test_a_description_is_of_the_network_that_is_built(model: ModelSpec) -> None:
    network = build_network(model, bands=3, classes=5)
    found = describe_spec(model, bands=3, classes=5)
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    assert found["output_stride"] == 1
    assert "stem_channels" not in found, "an option of HRNet's"


def test_cost_per_pixel_is_that_of_the_layers() -> None:
    """U-Net's cost by hand: 9 c_in c_out for each 3x3, 1/4 of that on each coarser level."""
    widths = [64 * 2**i for i in range(5)]
    macs = 9 * (4 * 64 + 64 * 64)
    for level in range(1, 5):
        fine, coarse = widths[level - 1], widths[level]
        macs += 9 * (fine * coarse + coarse * coarse) / 4**level
        # 2x2 up-convolution with stride 2: one tap for each fine pixel; then two 3x3
        macs += (coarse * fine + 9 * (2 * fine * fine + fine * fine)) / 4 ** (level - 1)
    assert describe("unet_w64", 4, 10)["macs_per_pixel"] == pytest.approx(macs + 64 * 10, rel=1e-3)


def test_stem_channels_make_a_small_hrnet_and_the_default_is_the_papers() -> None:
    small = describe("hrnet_w8", 4, 7, stem_channels=16)
    paper = describe("hrnet_w8", 4, 7)
    assert small["stem_channels"] == 16
    assert small["macs_per_pixel"] < paper["macs_per_pixel"] / 2
    assert small["receptive_field"] == paper["receptive_field"]
    network = HRNet(4, 7, width=8, stem_channels=16)
    assert small["parameters"] == sum(p.numel() for p in network.parameters())
    assert network.stage1[0].body[0][0].out_channels == 16
    assert network.stage1[-1].body[-1][0].out_channels == 64


@pytest.mark.parametrize("build", [
    lambda: UNet(4, 7, width=0), lambda: FCDenseNet(0, 7), lambda: HRNet(4, 7, stem_channels=0),
])  # fmt: skip
def test_a_network_of_nothing_is_refused(build: Callable[[], Network]) -> None:
    with pytest.raises(ModelError, match="each must be at least 1"):
        build()


def info_of(spec: ModelSpec) -> BundleInfo:
    return BundleInfo(
        model=spec, bands=("r", "g", "b", "n"), fill=0, mean=(128.0,) * 4, std=(40.0,) * 4,
        legend=SEVEN,
    )  # fmt: skip


def test_a_bundle_gives_the_same_network_back(model: ModelSpec, tmp_path: Path) -> None:
    saved = random_model(info_of(model))
    save_bundle(tmp_path / "model", saved, info_of(model))
    loaded, info = load_bundle(tmp_path / "model")
    assert info.model == model
    raw = torch.from_numpy(images(1, size=33, seed=9))
    with torch.no_grad():
        assert torch.equal(loaded(raw), saved(raw))


def test_a_bundle_from_before_stem_channels_keeps_its_id() -> None:
    """Its description lacks the key; the id was the digest of a description without it."""
    digest = "f97b05f8185c423a41fa3859fd75bef57d53bd96cc00983cca430e28032951d0"
    assert info_of(ModelSpec(arch="hrnet_w2")).digest == digest
    other = ModelSpec(arch="hrnet_w2", stem_channels=16)
    assert info_of(other).digest != digest


def test_the_exported_graph_says_the_same(model: ModelSpec, tmp_path: Path) -> None:
    """On a window whose size is no multiple of sixteen, where pooled edges are cropped again."""
    window = 40
    said = random_model(info_of(model))(torch.from_numpy(images(3, size=window))).argmax(1)
    assert len(said.unique()) >= 4, "parity of a network that says one class would mean nothing"
    report = export_model(
        random_model(info_of(model)), info_of(model), tmp_path / "m.onnx", images(3, size=window),
        window=window, spec=ExportSpec(),
    )  # fmt: skip
    assert report.class_agreement >= 0.9999
    assert report.max_probability_error <= 0.005
