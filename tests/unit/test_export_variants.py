"""fp16 and int8 of every kind of network say what the network says, each in its own numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from terrafine.export import (
    BundleInfo,
    Release,
    load_bundle,
    open_graph,
    save_bundle,
    write_release,
)
from terrafine.export.session import INPUT, OUTPUTS, Variant
from terrafine.legend import FBP
from terrafine.models import build_network, changed_channels
from terrafine.pruning import plan_pruning, without_zeroed, zero_filters
from terrafine.spec import ExportSpec, PruneSpec
from tests.exported import PASSED, WINDOW, described, images, random_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NETWORKS = (
    "hrnet_w4 pruned",
    "fcdensenet64_k3 pruned",
    "unet_w4 of one band",
    "unet_w4 of 24 classes",
    "unet_w4 with half instance norm",
)


def info_of(name: str) -> BundleInfo:
    """The description of a network by its name in ``NETWORKS``."""
    info = described(name.split()[0])
    if "band" in name:
        one = {key: getattr(info, key)[:1] for key in ("bands", "mean", "std")}
        return info.model_copy(update=one)
    if "half" in name:
        model = info.model.model_copy(update={"first_norm": "instance-batch"})
        return info.model_copy(update={"model": model})
    if "24" in name:
        return info.model_copy(update={"legend": FBP})
    if "pruned" in name:
        network = build_network(info.model, bands=4, classes=len(info.legend.classes))
        plan = plan_pruning(network, PruneSpec(ratio=0.4, coupled=True), bands=4)
        zero_filters(network, plan)
        channels = changed_channels(without_zeroed(network, plan), info.model)
        assert channels
        return info.model_copy(update={"channels": channels})
    return info


@pytest.fixture(scope="module", params=NETWORKS)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of all variants of a network that nobody trained."""
    folder = tmp_path_factory.mktemp("variants")
    described_as = info_of(request.param)
    save_bundle(folder / "model", random_model(described_as), described_as)
    model, info = load_bundle(folder / "model")
    windows_NCHW = images(4, seed=9)[:, : len(info.bands)]
    # what an untrained network says in 8 bits is no more than similar
    spec = ExportSpec(
        variants=("fp32", "fp16", "int8"),
        reduced_class_agreement={"fp16": 0.98, "int8": 0.6},
        reduced_probability_error={"int8": 0.1},
    )
    return write_release(
        folder / "release", model, info, windows_NCHW,
        name="variants", gate=PASSED, window=WINDOW, spec=spec,
    )  # fmt: skip


def test_every_variant_is_made_and_says_nearly_what_the_network_says(release: Release) -> None:
    assert release.info.refused == {}
    assert list(release.info.graphs) == ["fp32", "fp16", "int8"]


@pytest.mark.parametrize("variant", ["fp16", "int8"])
def test_every_convolution_is_in_the_variants_numbers(release: Release, variant: Variant) -> None:
    graph = onnx.load(release.graph(variant)).graph
    types = {one.name: one.data_type for one in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) > 10
    wanted = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[variant]
    for node in convolutions:
        weight = node.input[1]
        while weight not in types:
            weight = made_by[weight].input[0]
        assert types[weight] == wanted, node.name


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_the_brightest_and_the_darkest_numbers_are_classified(
    release: Release, variant: Variant
) -> None:
    session, info = open_graph(release.graph(variant))
    for value in (1, 65535):
        window_NCHW = np.full((1, info.bands, WINDOW, WINDOW), value, np.uint16)
        enhanced, code, other = session.run(list(OUTPUTS), {INPUT: window_NCHW})
        assert set(np.unique(code)) <= set(release.info.legend.codes)
        assert (np.maximum(enhanced, other) > 0).all()
