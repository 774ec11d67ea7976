"""``config.pbtxt``: built as the message that Triton reads, never as text put together.

A model's configuration covers every version that is loaded, so its parameters say which version is
which release: ``release.<version>`` is the release's digest, ``graph.<version>`` JSON of what the
graph takes and what its codes mean (:class:`terrafine.export.GraphInfo`), ``engine.<version>`` what
runs it (:func:`engine`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from terrafine.errors import ModelError, ServingError
from terrafine.export import INPUT, OUTPUTS, GraphInfo, Release, open_graph
from terrafine.spec import ServeSpec

ModelConfig = Any  # pb.ModelConfig: tritonclient ships no types
GRAPH_FILE = "model.onnx"
WARMUP_FILE = "image"
_MICROSECONDS = 1_000_000
_KINDS = {"cpu": "KIND_CPU", "gpu": "KIND_GPU"}


def build_config(release: Release, spec: ServeSpec, *, version: int) -> ModelConfig:
    """Configuration of one version of ``spec.name``, checked against the release's graph.

    Raises ModelError where the release holds no such variant, or its graph is another than the
    release says.
    """
    path = release.graph(spec.variant)
    session, graph = open_graph(path)
    config = pb.ModelConfig(
        name=spec.name,
        backend="onnxruntime",
        max_batch_size=spec.max_batch,
        default_model_filename=GRAPH_FILE,
        input=[_input(release)],
        output=[_output(release, name) for name in OUTPUTS],
        instance_group=[_instances(spec)],
        version_policy={"specific": {"versions": [version]}},
        dynamic_batching=_batching(spec),
        model_warmup=_warmup(release, spec),
        parameters={
            key: {"string_value": value}
            for key, value in {
                "intra_op_thread_count": str(spec.threads),
                f"release.{version}": release.digest,
                f"graph.{version}": json.dumps(graph.to_metadata()),
                "variant": spec.variant,
                "loaded": str(spec.loaded),
                "canary_class_agreement": str(spec.canary_class_agreement),
                "canary_probability_error": str(spec.canary_probability_error),
            }.items()
        },
    )
    if spec.tensorrt is not None:
        config.optimization.CopyFrom(_tensorrt(release, spec, spec.tensorrt))
    check_config(config, session, where=path)
    return config


def engine(variant: str, tensorrt: str | None) -> str:
    """What runs a release: which of its graphs, and TensorRT's precision. Others, other bytes."""
    return variant if tensorrt is None else f"{variant} by TensorRT in {tensorrt}"


def check_config(config: ModelConfig, session: Any, *, where: Path) -> None:
    """ModelError unless the configuration takes and gives exactly what the graph does.

    Triton's own backend would refuse a clash when it loads the model; the python stand-in would
    not notice.
    """
    for what, stated, found in (
        ("input", config.input, session.get_inputs()),
        ("output", config.output, session.get_outputs()),
    ):
        wanted = {item.name: _described(item) for item in stated}
        offered = {node.name: (node.type, tuple(node.shape[1:])) for node in found}
        if wanted != offered:
            raise ModelError(
                f"{where}: the graph's {what}s are {offered}, but the release says {wanted}; "
                "export the model again"
            )
        for node in found:
            if isinstance(node.shape[0], int):
                raise ModelError(
                    f"{where}: {what} {node.name} takes batches of {node.shape[0]} only, so a "
                    "server could not batch requests; export the model again"
                )


def loaded_together(configs: Mapping[int, ModelConfig]) -> ModelConfig:
    """The configuration that serves these versions at once; that of the newest decides.

    ServingError where they take windows of different shapes, which one model cannot.
    """
    champion = max(configs)
    together = pb.ModelConfig()
    together.CopyFrom(configs[champion])
    for version, config in configs.items():
        if list(config.input) != list(together.input):
            raise ServingError(
                f"model {together.name}: version {version} takes {_shape(config)} and version "
                f"{champion} {_shape(together)}, which one model cannot; deploy the new release "
                "under another serve.name, or with serve.loaded: 1"
            )
        for key in (f"release.{version}", f"graph.{version}"):
            together.parameters[key].CopyFrom(config.parameters[key])
        together.parameters[f"engine.{version}"].string_value = _engine_of(config)
    together.version_policy.specific.versions[:] = sorted(configs)
    return together


def newest(config: ModelConfig) -> int:
    """The version that a request gets which names none."""
    return int(max(config.version_policy.specific.versions))


def renamed(config: ModelConfig, name: str) -> ModelConfig:
    """The same configuration for a model of another name."""
    other = pb.ModelConfig()
    other.CopyFrom(config)
    other.name = name
    return other


def to_text(config: ModelConfig) -> str:
    """As ``config.pbtxt``."""
    return str(text_format.MessageToString(config))


def from_text(text: str, *, where: str) -> ModelConfig:
    """From ``config.pbtxt``; ServingError where it is none."""
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise ServingError(
            f"{where}: not a Triton model configuration ({error}); deploy the release again"
        ) from error


def parameter(config: ModelConfig, key: str, *, where: str) -> str:
    """One of its parameters; ServingError where it is not terrafine's configuration."""
    if key not in config.parameters:
        raise ServingError(
            f"{where}: its configuration names no {key!r}, so it was not deployed by terrafine; "
            "deploy a release with `terrafine deploy`"
        )
    return str(config.parameters[key].string_value)


def graph_of(config: ModelConfig, version: int, *, where: str) -> GraphInfo:
    """What the graph of a version takes and means."""
    text = parameter(config, f"graph.{version}", where=where)
    try:
        metadata = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ServingError(
            f"{where}: graph.{version} is damaged ({error}); deploy the release again"
        ) from error
    return GraphInfo.from_metadata(metadata, where=where)


def _input(release: Release) -> Any:
    window = release.info.window
    return pb.ModelInput(
        name=INPUT, data_type="TYPE_UINT16", dims=[len(release.info.bands), window, window]
    )


def _output(release: Release, name: str) -> Any:
    window = release.info.window
    return pb.ModelOutput(name=name, data_type="TYPE_UINT8", dims=[window, window])


def _instances(spec: ServeSpec) -> Any:
    # an explicit kind fails to load where there is no such device, none takes what is there
    kind = {} if spec.device == "auto" else {"kind": _KINDS[spec.device]}
    return pb.ModelInstanceGroup(count=spec.instances, **kind)


def _batching(spec: ServeSpec) -> Any:
    return pb.ModelDynamicBatching(
        preferred_batch_size=spec.preferred_batches,
        max_queue_delay_microseconds=round(spec.queue_delay_ms * 1000),
        default_queue_policy=pb.ModelQueuePolicy(
            timeout_action="REJECT",
            default_timeout_microseconds=round(spec.queue_timeout_s * _MICROSECONDS),
            allow_timeout_override=True,
            max_queue_size=spec.queue_limit,
        ),
    )


def _warmup(release: Release, spec: ServeSpec) -> list[Any]:
    """One real window, and with TensorRT a full batch too, whose kernels differ."""
    image = pb.ModelWarmup.Input(
        data_type="TYPE_UINT16", dims=_input(release).dims, input_data_file=WARMUP_FILE
    )
    sizes = sorted({1, spec.max_batch}) if spec.tensorrt else [1]
    return [
        pb.ModelWarmup(name=f"{size} real", batch_size=size, inputs={INPUT: image})
        for size in sizes
    ]


def _tensorrt(release: Release, spec: ServeSpec, precision: str) -> Any:
    """One engine for every batch size, kept on the server's disk."""
    shape = "x".join(str(size) for size in _input(release).dims)
    options = {
        "precision_mode": precision.upper(),
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": spec.engine_cache,
        "trt_timing_cache_enable": "true",
        "trt_timing_cache_path": spec.engine_cache,
        "trt_profile_min_shapes": f"{INPUT}:1x{shape}",
        "trt_profile_opt_shapes": f"{INPUT}:{spec.max_batch}x{shape}",
        "trt_profile_max_shapes": f"{INPUT}:{spec.max_batch}x{shape}",
    }
    accelerator = pb.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator(
        name="tensorrt", parameters=options
    )
    return pb.ModelOptimizationPolicy(
        execution_accelerators={"gpu_execution_accelerator": [accelerator]}
    )


def _engine_of(config: ModelConfig) -> str:
    """Of one version, by the configuration that it was staged with."""
    compiled = config.optimization.execution_accelerators.gpu_execution_accelerator
    precision = compiled[0].parameters["precision_mode"].lower() if compiled else None
    return engine(config.parameters["variant"].string_value, precision)


def _described(item: Any) -> tuple[str, tuple[int, ...]]:
    """Type and shape behind the batch axis, in onnxruntime's words."""
    name = pb.DataType.Name(item.data_type).removeprefix("TYPE_").lower()
    return f"tensor({name})", tuple(item.dims)


def _shape(config: ModelConfig) -> str:
    return " x ".join(str(size) for size in config.input[0].dims)
