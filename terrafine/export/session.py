"""An exported graph as onnxruntime runs it, and what the file says of itself.

No torch here: this is all of an exported model that inference needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors
from pydantic import ValidationError

from terrafine.errors import ModelError
from terrafine.legend import Legend, UInt8Array

UInt16Array = npt.NDArray[np.uint16]
Variant = Literal["fp32", "fp16", "int8"]
INPUT = "image"
OUTPUTS = ("enhanced_probability", "other_class", "other_probability")


@dataclass(frozen=True)
class Prediction:
    """What a model says of a batch of windows; each array (N, H, W) uint8.

    ``enhanced_NHW``: round(255 x probability) of the legend's enhanced class, 0 without one.
    ``other_class_NHW``: legend code of the most probable other class, 0 where the pixel is missing.
    ``other_NHW``: round(255 x its probability), one less where the enhanced class is more probable
    and both round to the same.
    """

    enhanced_NHW: UInt8Array
    other_class_NHW: UInt8Array
    other_NHW: UInt8Array


@dataclass(frozen=True)
class GraphInfo:
    """What a graph takes and what its codes mean.

    ``window``: pixels a side; ``band_names`` in the order of the input; ``scale``: what the
    imagery's stored values are multiplied by before they are rounded to uint16; ``fill``: the
    uint16 of missing pixels; ``model``: digest of the bundle it was exported from (the model
    release); ``weights_sha256``: of that bundle's weights file.
    """

    window: int
    band_names: tuple[str, ...]
    scale: float
    fill: int
    legend: Legend
    model: str
    weights_sha256: str

    @property
    def bands(self) -> int:
        """How many there are."""
        return len(self.band_names)

    def to_metadata(self) -> dict[str, str]:
        """As ONNX ``metadata_props``."""
        return {
            "terrafine.window": str(self.window),
            "terrafine.bands": json.dumps(self.band_names),
            "terrafine.scale": repr(self.scale),
            "terrafine.fill": str(self.fill),
            "terrafine.legend": self.legend.model_dump_json(),
            "terrafine.model": self.model,
            "terrafine.weights_sha256": self.weights_sha256,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, where: str) -> GraphInfo:
        """From ``metadata_props``; ModelError when they are not terrafine's."""
        try:
            return cls(
                window=int(metadata["terrafine.window"]),
                band_names=tuple(str(name) for name in json.loads(metadata["terrafine.bands"])),
                scale=float(metadata["terrafine.scale"]),
                fill=int(metadata["terrafine.fill"]),
                legend=Legend.model_validate(json.loads(metadata["terrafine.legend"])),
                model=metadata["terrafine.model"],
                weights_sha256=metadata["terrafine.weights_sha256"],
            )
        except (KeyError, ValueError, TypeError, ValidationError) as error:
            raise ModelError(
                f"{where}: an ONNX graph, but not one that this version of terrafine exported "
                f"({error!r}); make it with `terrafine export`"
            ) from error


def open_graph(path: Path, *, threads: int = 0) -> tuple[onnxruntime.InferenceSession, GraphInfo]:
    """Open an exported graph on the CPU; ModelError when it is missing or is none.

    ``threads``: for the work inside one operator, 0 for every core. Operators run one after the
    other and kernels are the deterministic ones, so that the bytes of a map depend neither on the
    number of threads nor on the run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    if not path.is_file():
        raise ModelError(f"{path}: no exported model here; make one with `terrafine export`")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (
        runtime_errors.Fail,
        runtime_errors.InvalidProtobuf,
        runtime_errors.InvalidGraph,
        runtime_errors.NotImplemented,
        runtime_errors.InvalidArgument,
    ) as error:
        raise ModelError(
            f"{path}: not a readable ONNX graph ({str(error).splitlines()[0][:200]}); export it "
            "again"
        ) from error
    metadata = session.get_modelmeta().custom_metadata_map
    return session, GraphInfo.from_metadata(metadata, where=str(path))
