"""config.pbtxt says what the graph takes, and asks of Triton what the spec asks for."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from pydantic import ValidationError

from serving.triton.config import (
    build_config,
    check_config,
    engine,
    from_text,
    graph_of,
    loaded_together,
    to_text,
)
from terrafine.errors import ModelError, ServingError
from terrafine.export import OUTPUTS, Release, open_graph
from terrafine.spec import ServeSpec
from tests.exported import WINDOW


def test_configuration_says_what_the_graph_takes_and_which_release_it_is(
    releases: tuple[Release, Release],
) -> None:
    release = releases[0]
    spec = ServeSpec(max_batch=4, preferred_batches=(2, 4), queue_limit=7, queue_timeout_s=1.5)
    config = from_text(to_text(build_config(release, spec, version=3)), where="test")
    assert (config.name, config.backend, config.max_batch_size) == ("landcover", "onnxruntime", 4)
    assert [(i.name, list(i.dims)) for i in config.input] == [("image", [4, WINDOW, WINDOW])]
    assert [(o.name, list(o.dims)) for o in config.output] == [
        (name, [WINDOW, WINDOW]) for name in OUTPUTS
    ]
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [2, 4]
    assert batching.default_queue_policy.max_queue_size == 7
    assert batching.default_queue_policy.default_timeout_microseconds == 1_500_000
    assert list(config.version_policy.specific.versions) == [3]
    assert config.parameters["release.3"].string_value == release.digest
    graph = graph_of(config, 3, where="test")
    assert (graph.window, graph.bands, graph.fill) == (WINDOW, 4, release.info.fill)
    assert graph.legend == release.info.legend
    assert graph.model == release.info.model


def test_device_and_tensorrt_are_named_only_where_asked_for(
    releases: tuple[Release, Release],
) -> None:
    plain = build_config(releases[0], ServeSpec(), version=1)
    assert "kind" not in to_text(plain)
    assert not plain.HasField("optimization")
    spec = ServeSpec(device="gpu", tensorrt="fp16", max_batch=8, engine_cache="/engines")
    config = build_config(releases[0], spec, version=1)
    assert "kind: KIND_GPU" in to_text(config)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP16"
    assert accelerator.parameters["trt_engine_cache_path"] == "/engines"
    # one engine for all sizes of a batch
    assert accelerator.parameters["trt_profile_min_shapes"] == f"image:1x4x{WINDOW}x{WINDOW}"
    assert accelerator.parameters["trt_profile_max_shapes"] == f"image:8x4x{WINDOW}x{WINDOW}"
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 8]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c.input[0].dims.__setitem__(1, 32), "inputs are .*64, 64.* release says .*32"),
        (lambda c: setattr(c.input[0], "name", "picture"), "inputs are .*image.*picture"),
        (lambda c: setattr(c.output[1], "data_type", 3), "outputs are"),
        (lambda c: c.output.pop(), "outputs are"),
    ],
)
def test_configuration_that_does_not_fit_the_graph_is_refused(
    releases: tuple[Release, Release], edit: object, says: str
) -> None:
    config = build_config(releases[0], ServeSpec(), version=1)
    edit(config)  # type: ignore[operator]
    path = releases[0].graph("fp32")
    session, _ = open_graph(path)
    with pytest.raises(ModelError, match=says):
        check_config(config, session, where=path)


def test_graph_of_one_batch_size_is_refused(
    releases: tuple[Release, Release], tmp_path: Path
) -> None:
    proto = onnx.load(releases[0].graph("fp32"))
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "two.onnx")
    session, _ = open_graph(tmp_path / "two.onnx")
    config = build_config(releases[0], ServeSpec(), version=1)
    with pytest.raises(ModelError, match=r"two\.onnx: input image takes batches of 2 only"):
        check_config(config, session, where=tmp_path / "two.onnx")


def test_variant_that_the_release_does_not_hold_is_refused(
    releases: tuple[Release, Release],
) -> None:
    with pytest.raises(ModelError, match="holds no int8 graph"):
        build_config(releases[0], ServeSpec(variant="int8"), version=1)


def test_versions_served_together_are_all_named_and_the_newest_decides(
    releases: tuple[Release, Release],
) -> None:
    first, second = releases
    together = loaded_together(
        {
            5: build_config(second, ServeSpec(max_batch=2), version=5),
            3: build_config(first, ServeSpec(max_batch=8), version=3),
        }
    )
    assert list(together.version_policy.specific.versions) == [3, 5]
    # the memory, or the engine, of the newest has room for no more
    assert together.max_batch_size == 2
    assert together.parameters["release.3"].string_value == first.digest
    assert together.parameters["release.5"].string_value == second.digest
    assert json.loads(together.parameters["graph.3"].string_value)


def test_what_is_served_says_what_runs_each_version(releases: tuple[Release, Release]) -> None:
    compiled = ServeSpec(tensorrt="fp16", device="gpu")
    configs = {
        version: build_config(releases[0], spec, version=version)
        for version, spec in ((1, ServeSpec()), (2, ServeSpec(instances=2)), (3, compiled))
    }
    said = loaded_together(configs).parameters
    assert said["engine.1"].string_value == said["engine.2"].string_value == engine("fp32", None)
    assert said["engine.3"].string_value == engine("fp32", "fp16") == "fp32 by TensorRT in fp16"


def test_versions_of_different_windows_are_not_served_under_one_name(
    releases: tuple[Release, Release],
) -> None:
    config = build_config(releases[0], ServeSpec(), version=1)
    wide = build_config(releases[1], ServeSpec(), version=2)
    wide.input[0].dims[1:] = [96, 96]
    with pytest.raises(ServingError, match="version 1 takes 4 x 64 x 64 and version 2 4 x 96 x 96"):
        loaded_together({1: config, 2: wide})


def test_text_that_is_no_configuration_is_refused() -> None:
    with pytest.raises(ServingError, match=r"a/config.pbtxt: not a Triton model configuration"):
        from_text("max_batch_size: many", where="a/config.pbtxt")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="preferred_batches: 9 is above max_batch 8"):
        ServeSpec(preferred_batches=(4, 9))
