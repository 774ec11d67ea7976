"""The engines that a spec may ask for say the same of the same windows."""

from __future__ import annotations

import importlib.util
import pickle

import numpy as np
import pytest

from serving.mapper.predictors import predictor_for
from terrafine.errors import ModelError
from terrafine.export import Release
from terrafine.mapping import OnnxPredictor, Predictor, local_predictor
from terrafine.spec import MappingSpec, MapSpec
from tests.unit.test_spec import LEAST

HERE = importlib.util.find_spec("openvino") is not None


def opened(release: Release, **settings: object) -> Predictor:
    """As a worker does it: what is pickled opens the model."""
    spec = MapSpec.model_validate(LEAST)
    cut = MappingSpec.model_validate({"core": 32, "halo": 16, "threads": 1, **settings})
    spec = spec.model_copy(update={"map": cut})
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


@pytest.mark.skipif(HERE, reason="OpenVINO is here")
def test_without_openvino_the_remedy_is_told(releases: tuple[Release, Release]) -> None:
    with pytest.raises(ModelError, match=r"OpenVINO is not installed.*terrafine\[openvino\]"):
        opened(releases[0], predictor="openvino")


def test_the_domain_alone_asks_no_server(releases: tuple[Release, Release]) -> None:
    spec = MapSpec.model_validate(LEAST)
    served = MappingSpec(predictor="triton", server="grpc://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"set map\.predictor to onnx"):
        local_predictor(spec.model_copy(update={"map": served}), releases[0], releases[0].folder)
