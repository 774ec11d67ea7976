"""The engines that a spec may ask for say the same of the same windows."""

from __future__ import annotations

import importlib.util
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from serving.mapper.predictors import predictor_for
from terrafine.errors import ModelError
from terrafine.export import Release
from terrafine.mapping import OnnxPredictor, Predictor, local_predictor
from terrafine.spec import ExportSpec, MappingSpec, MapSpec
from tests.unit.test_spec import LEAST

HERE = importlib.util.find_spec("openvino") is not None


def opened(release: Release, export: dict[str, Any] | None = None, **settings: object) -> Predictor:
    """As a worker does it: what is pickled opens the model."""
    spec = MapSpec.model_validate(LEAST)
    cut = MappingSpec.model_validate({"core": 32, "halo": 16, "threads": 1, **settings})
    spec = spec.model_copy(update={"map": cut, "export": ExportSpec.model_validate(export or {})})
    bundle = release.folder.with_name(f"{release.folder.name}-model")
    return pickle.loads(pickle.dumps(predictor_for(spec, release, bundle)))()  # noqa: S301


@pytest.mark.parametrize(
    "engine",
    [
        "torch",
        pytest.param("openvino", marks=pytest.mark.skipif(not HERE, reason="no OpenVINO here")),
    ],
)
def test_another_engine_says_the_same_classes(releases: tuple[Release, Release], engine) -> None:
    release, _ = releases
    windows_NCHW, _ = release.canary("fp32")
    one, other = opened(release, predictor="onnx"), opened(release, predictor=engine)
    assert isinstance(one, OnnxPredictor)
    assert one.window == other.window == 64
    for window_CHW in windows_NCHW:
        said, also = one.predict(window_CHW[None]), other.predict(window_CHW[None])
        assert np.mean(said.other_class_NHW == also.other_class_NHW) > 0.99
        difference = said.enhanced_NHW.astype(int) - also.enhanced_NHW
        assert np.abs(difference).max() <= 1
        again = other.predict(window_CHW[None])
        assert np.array_equal(also.enhanced_NHW, again.enhanced_NHW), "equal windows, equal bytes"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_network_takes_no_gpu_before_it_is_asked(
    releases: tuple[Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who drives a map opens the model as well, to look at it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    release, _ = releases
    model = opened(release, predictor="torch")
    windows_NCHW, _ = release.canary("fp32")
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
        model.predict(windows_NCHW[:1])


def has_bfloat16() -> bool:
    if not HERE:
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.skipif(not has_bfloat16(), reason="no OpenVINO here, or no CPU with bfloat16")
def test_bfloat16_says_nearly_the_same_classes_and_always_the_same_bytes(
    releases: tuple[Release, Release],
) -> None:
    release, _ = releases
    windows_NCHW, exact = release.canary("fp32")
    reduced = {"reduced_class_agreement": {"fp16": 0.9}}
    one = opened(release, reduced, predictor="openvino_bf16")
    other = opened(release, reduced, predictor="openvino_bf16", threads=2)
    said, also = one.predict(windows_NCHW[:1]), other.predict(windows_NCHW[:1])
    assert np.mean(said.other_class_NHW == exact.other_class_NHW[:1]) > 0.95
    assert not np.array_equal(said.enhanced_NHW, exact.enhanced_NHW[:1]), "it is not float32"
    for name in ("enhanced_NHW", "other_class_NHW", "other_NHW"):
        assert np.array_equal(getattr(said, name), getattr(also, name)), name


@pytest.mark.skipif(not has_bfloat16(), reason="no OpenVINO here, or no CPU with bfloat16")
def test_bfloat16_that_says_other_classes_than_the_gated_graph_is_refused(
    releases: tuple[Release, Release],
) -> None:
    with pytest.raises(ModelError, match=r"in bfloat16 it says .* set map\.predictor to openvino"):
        opened(releases[0], {"reduced_class_agreement": {"fp16": 1.0}}, predictor="openvino_bf16")


@pytest.mark.skipif(not has_bfloat16(), reason="no OpenVINO here, or no CPU with bfloat16")
def test_bfloat16_of_other_probabilities_is_refused_though_its_classes_are_allowed(
    releases: tuple[Release, Release],
) -> None:
    limits = {"reduced_class_agreement": {"fp16": 0}, "reduced_probability_error": {"fp16": 0}}
    with pytest.raises(ModelError, match=r"reduced_probability_error\.fp16 allows 0; set"):
        opened(releases[0], limits, predictor="openvino_bf16")


@pytest.mark.skipif(HERE, reason="OpenVINO is here")
def test_without_openvino_the_remedy_is_told(releases: tuple[Release, Release]) -> None:
    with pytest.raises(ModelError, match=r"OpenVINO is not installed.*terrafine\[openvino\]"):
        opened(releases[0], predictor="openvino")


def test_the_domain_alone_asks_no_server(releases: tuple[Release, Release]) -> None:
    spec = MapSpec.model_validate(LEAST)
    served = MappingSpec(predictor="triton", server="grpc://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"set map\.predictor to onnx"):
        local_predictor(spec.model_copy(update={"map": served}), releases[0], releases[0].folder)
