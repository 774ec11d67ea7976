"""What the mapper asks of a model: raw uint16 windows in, three bytes per pixel out.

The mapper knows only :class:`Predictor`, so that onnxruntime in this process, torch, or a server
behind a network can stand behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from terrafine.errors import ModelError
from terrafine.export.session import INPUT, OUTPUTS, Prediction, UInt16Array, open_graph
from terrafine.legend import Legend

if TYPE_CHECKING:
    from terrafine.export.graph import ServedModel

__all__ = ["OnnxPredictor", "Prediction", "Predictor", "TorchPredictor", "UInt16Array"]


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
