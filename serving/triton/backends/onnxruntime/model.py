"""The onnxruntime backend for a Triton that has only the python backend (the PyPI wheel's).

Triton takes a ``model.py`` under ``<backends>/onnxruntime`` for the backend of that name, so that
the production ``config.pbtxt`` loads unchanged. Sessions are opened as those of
terrafine.export.session, so that the same bytes come out. It runs inside Triton's python stub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """One instance of one version of a model, as the python backend wants it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's graph; what is wrong with it becomes the answer to the load."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _threads(config)
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        file = config.get("default_model_filename") or "model.onnx"
        self._session = onnxruntime.InferenceSession(
            Path(args["model_repository"]) / args["model_version"] / file,
            options,
            providers=["CPUExecutionProvider"],
        )
        self._inputs = [item["name"] for item in config["input"]]
        self._outputs = [item["name"] for item in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests that Triton put together as one batch."""
        sizes: list[int] = []
        feeds: dict[str, np.ndarray[Any, Any]] = {}
        for name in self._inputs:
            tensors = [pb_utils.get_input_tensor_by_name(request, name) for request in requests]
            # numpy 2: as_numpy() of this backend's age gives wrong numbers without a word
            arrays = [np.from_dlpack(tensor) for tensor in tensors]
            sizes = [len(array) for array in arrays]
            feeds[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        answers = self._session.run(self._outputs, feeds)
        ends = np.cumsum(sizes)[:-1]
        parts = [np.split(answer, ends) for answer in answers]
        return [
            _response(
                {name: part[i] for name, part in zip(self._outputs, parts, strict=True)},
                request.requested_output_names(),
            )
            for i, request in enumerate(requests)
        ]


def _threads(config: dict[str, Any]) -> int:
    """Threads inside one operator, as Triton's own backend takes them; 0: every core."""
    parameter = config.get("parameters", {}).get("intra_op_thread_count", {})
    return int(parameter.get("string_value", 0))


def _response(found: dict[str, np.ndarray[Any, Any]], wanted: list[str]) -> Any:
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor.from_dlpack(name, np.ascontiguousarray(array))
            for name, array in found.items()
            if name in wanted
        ]
    )
