"""What the mapper asks of a model: raw uint16 windows in, three bytes per pixel out.

The mapper knows only :class:`Predictor`, so that onnxruntime in this process, torch, or a server
behind a network can stand behind it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from terrafine.errors import ModelError
from terrafine.export.session import INPUT, OUTPUTS, Prediction, UInt16Array, open_graph
from terrafine.legend import Legend

if TYPE_CHECKING:
    from terrafine.export.graph import ServedModel
    from terrafine.export.release import Release
    from terrafine.spec import MapSpec

__all__ = [
    "OnnxPredictor",
    "OpenVinoPredictor",
    "Prediction",
    "Predictor",
    "TorchPredictor",
    "UInt16Array",
    "local_predictor",
    "open_torch",
]


class Predictor(Protocol):
    """A model that is ready to be asked."""

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows of raw numbers; equal windows give equal bytes."""


class OnnxPredictor:
    """An exported graph, run by onnxruntime on this machine's CPU.

    ``threads``: of onnxruntime, 0 for every core; the bytes do not depend on it (tested).
    ModelError when the file is missing or is no graph that terrafine exported.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        self._session, self.info = open_graph(path, threads=threads)
        self._path = path

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self.info.window

    def require(self, *, legend: Legend, fill: int) -> None:
        """ModelError unless the graph says ``legend``'s codes and takes ``fill`` for missing."""
        if self.info.legend.digest != legend.digest:
            raise ModelError(
                f"{self._path}: exported for another legend ({self.info.legend.name!r}: "
                f"{', '.join(self.info.legend.names)}; wanted {legend.name!r}: "
                f"{', '.join(legend.names)}); train and export with this legend"
            )
        if self.info.fill != fill:
            raise ModelError(
                f"{self._path}: takes {self.info.fill} for a missing pixel, but the imagery marks "
                f"missing pixels by {fill}; set imagery.nodata as it was when the model was trained"
            )

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows of shape (N, bands, window, window); ModelError on another shape."""
        expected = (self.info.bands, self.window, self.window)
        if windows_NCHW.shape[1:] != expected or windows_NCHW.dtype != np.uint16:
            raise ModelError(
                f"{self._path}: takes uint16 windows of {expected}, not {windows_NCHW.dtype} of "
                f"{windows_NCHW.shape[1:]}; export the model with this window and these bands"
            )
        found: Any = self._session.run(list(OUTPUTS), {INPUT: windows_NCHW})
        return Prediction(*found)


class TorchPredictor:
    """The network itself, for machines without an exported graph and to compare against."""

    def __init__(self, model: ServedModel, *, window: int) -> None:
        self._model = model.eval()
        self._window = window

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self._window

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows of shape (N, bands, window, window)."""
        return Prediction(*self._model.predict(windows_NCHW))


class OpenVinoPredictor:
    """An exported graph, run by OpenVINO on this machine's CPU in full float32.

    ModelError where openvino is not installed (``pip install 'terrafine[openvino]'``), or the file
    is no graph that terrafine exported.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ModelError(
                "map.predictor openvino: OpenVINO is not installed here; install it "
                "(pip install 'terrafine[openvino]') or set map.predictor to onnx"
            ) from error
        # reads and checks what terrafine wrote into the file
        self.info = open_graph(path, threads=1)[1]
        settings = {
            # bfloat16, which it would choose on new processors, says other classes
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        core = openvino.Core()
        self._model = core.compile_model(core.read_model(path), "CPU", settings)

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self.info.window

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows of shape (N, bands, window, window)."""
        found = self._model({INPUT: windows_NCHW})
        return Prediction(*(found[name] for name in OUTPUTS))


def open_torch(bundle: Path, *, window: int) -> TorchPredictor:
    """The network of a bundle, on a GPU where there is one."""
    import torch  # which takes seconds

    from terrafine.export.bundle import load_bundle
    from terrafine.export.graph import ServedModel

    model, info = load_bundle(bundle)
    served = ServedModel(model, info.legend)
    return TorchPredictor(served.to("cuda" if torch.cuda.is_available() else "cpu"), window=window)


def local_predictor(spec: MapSpec, release: Release, bundle: Path) -> Callable[[], Predictor]:
    """How a worker opens the model in its own process; the function it gives can be pickled.

    ``bundle``: folder of the network that ``release`` was exported from.
    """
    settings = spec.map
    # several workers share the cores of one machine
    threads = settings.threads or (
        max(1, (os.cpu_count() or 1) // settings.workers) if settings.workers > 1 else 0
    )
    if settings.predictor == "onnx":
        return partial(OnnxPredictor, release.graph("fp32"), threads=threads)
    if settings.predictor == "openvino":
        return partial(OpenVinoPredictor, release.graph("fp32"), threads=threads)
    if settings.predictor == "torch":
        return partial(open_torch, bundle, window=settings.window)
    raise ModelError(
        f"map.predictor {settings.predictor}: only `terrafine` with its serving part can ask a "
        "model server; set map.predictor to onnx"
    )
