"""What the mapper asks of a model: raw uint16 windows in, three bytes per pixel out.

The mapper knows only :class:`Predictor`, so that onnxruntime in this process, torch, or a server
behind a network can stand behind it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from terrafine.errors import ModelError, TerrafineError
from terrafine.export.parity import compare
from terrafine.export.session import INPUT, OUTPUTS, Prediction, UInt16Array, open_graph
from terrafine.legend import Legend, UInt8Array

if TYPE_CHECKING:
    from terrafine.export.graph import ServedModel
    from terrafine.export.release import Release
    from terrafine.spec import MappingSpec, MapSpec
    from terrafine.telemetry import RequestRecord, VersionStatistics

__all__ = [
    "OnnxPredictor",
    "OpenVinoPredictor",
    "Prediction",
    "Predictor",
    "Served",
    "TorchPredictor",
    "UInt16Array",
    "engine_errors",
    "local_predictor",
    "open_torch",
    "threads_of",
    "windows_at_once",
]


class Predictor(Protocol):
    """A model that is ready to be asked."""

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows of raw numbers; equal windows give equal bytes."""


@runtime_checkable
class Served(Protocol):
    """A predictor behind which there are servers."""

    @property
    def failed_tries(self) -> Mapping[str, int]:
        """Cause -> tries of this process that failed so far and were repeated."""

    def answered(self) -> Sequence[RequestRecord]:
        """Requests of this process that were answered since the last call."""

    @property
    def counted(self) -> Sequence[VersionStatistics]:
        """What the servers had counted when they were last asked for ``queue_seconds``."""

    def queue_seconds(self) -> float | None:
        """What requests waited in the servers' queue since the last call, on average."""

    def give_up(self) -> None:
        """End what is under way at once: nobody waits for an answer any more."""


@contextmanager
def engine_errors(where: str) -> Iterator[None]:
    """What an engine raises (onnxruntime, torch and OpenVINO have no type in common) becomes a
    ModelError that says ``where``."""
    try:
        yield
    except TerrafineError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"{where}: the model failed ({type(error).__name__}: {reason}); if memory ran out use "
            "fewer workers or threads (map.workers, map.threads), and run the same command again"
        ) from error


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
    """The network itself, for machines without an exported graph and to compare against.

    It takes no memory of ``device`` before it is first asked: whoever drives a map opens a model
    that only workers ask.
    """

    def __init__(self, model: ServedModel, *, window: int, device: str | None = None) -> None:
        """``device``: torch's name of it; default: where the model is."""
        self._at_first, self._device = model.eval(), device
        self._window = window

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self._window

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows of shape (N, bands, window, window)."""
        return Prediction(*self._model.predict(windows_NCHW))

    @cached_property
    def _model(self) -> ServedModel:
        return self._at_first if self._device is None else self._at_first.to(self._device)


class OpenVinoPredictor:
    """An exported graph, run by OpenVINO on this machine's CPU in full float32.

    ``bfloat16``: in that instead, which is faster and says another class of a pixel here and there.
    There the bytes would depend on how many threads share a window, so each of ``threads`` has a
    window of its own; ask with as many threads (:func:`windows_at_once`).
    ModelError where openvino is not installed (``pip install 'terrafine[openvino]'``), the file is
    no graph that terrafine exported, or the CPU has no arithmetic in bfloat16: OpenVINO would take
    float32 without a word, and other bytes would come out than on the other machines.
    """

    def __init__(self, path: Path, *, threads: int = 0, bfloat16: bool = False) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ModelError(
                "map.predictor openvino: OpenVINO is not installed here; install it "
                "(pip install 'terrafine[openvino]') or set map.predictor to onnx"
            ) from error
        # reads and checks what terrafine wrote into the file
        self.info = open_graph(path, threads=1)[1]
        threads = threads or os.cpu_count() or 1
        streams = threads if bfloat16 else 1
        settings = {
            # else it would choose bfloat16 on new processors, which says other classes
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }
        core = openvino.Core()
        if bfloat16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ModelError(
                "map.predictor openvino_bf16: this CPU has no arithmetic in bfloat16, and float32 "
                "would give other bytes; map on CPUs that have it, or set map.predictor to openvino"
            )
        model = core.compile_model(core.read_model(path), "CPU", settings)
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._free.put(model.create_infer_request())

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self.info.window

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows of shape (N, bands, window, window)."""
        request = self._free.get()
        try:
            found = request.infer({INPUT: windows_NCHW})
            return Prediction(*(found[name] for name in OUTPUTS))
        finally:
            self._free.put(request)


def open_bfloat16(
    release: Release, *, threads: int, least: float, most: float
) -> OpenVinoPredictor:
    """The exact graph in bfloat16; ModelError unless it says what the gate judged.

    ``least``: share of equal classes on the release's own windows; ``most``: mean error of a
    probability there.
    """
    path = release.graph("fp32")
    predictor = OpenVinoPredictor(path, threads=threads, bfloat16=True)
    windows_NCHW, wanted = release.canary("fp32")
    pairs = [
        (_bytes(wanted, i), _bytes(predictor.predict(window_CHW[None]), 0))
        for i, window_CHW in enumerate(windows_NCHW)
    ]
    found = compare(pairs, release.info.legend)
    if not (found.class_agreement >= least and found.mean_probability_error <= most):
        raise ModelError(
            f"{path}: in bfloat16 it says the class of the exported graph for "
            f"{found.class_agreement:.6f} of the pixels that came with it, where "
            f"export.reduced_class_agreement.fp16 asks for {least:g}, and a probability that is "
            f"{found.mean_probability_error:.4f} off in the mean, where "
            f"export.reduced_probability_error.fp16 allows {most:g}; set map.predictor to openvino"
        )
    return predictor


def _bytes(said: Prediction, window: int) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    return said.enhanced_NHW[window], said.other_class_NHW[window], said.other_NHW[window]


def open_torch(bundle: Path, *, window: int) -> TorchPredictor:
    """The network of a bundle, on a GPU where there is one."""
    import torch  # which takes seconds

    from terrafine.export.bundle import load_bundle
    from terrafine.export.graph import ServedModel

    model, info = load_bundle(bundle)
    served = ServedModel(model, info.legend)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TorchPredictor(served, window=window, device=device)


def local_predictor(spec: MapSpec, release: Release, bundle: Path) -> Callable[[], Predictor]:
    """How a worker opens the model in its own process; the function it gives can be pickled.

    ``bundle``: folder of the network that ``release`` was exported from.
    """
    settings = spec.map
    threads = threads_of(settings)
    if settings.predictor == "onnx":
        return partial(OnnxPredictor, release.graph("fp32"), threads=threads)
    if settings.predictor == "openvino":
        return partial(OpenVinoPredictor, release.graph("fp32"), threads=threads)
    if settings.predictor == "openvino_bf16":
        least = spec.export.reduced_class_agreement["fp16"]
        most = spec.export.reduced_probability_error["fp16"]
        return partial(open_bfloat16, release, threads=threads, least=least, most=most)
    if settings.predictor == "torch":
        return partial(open_torch, bundle, window=settings.window)
    raise ModelError(
        f"map.predictor {settings.predictor}: only `terrafine` with its serving part can ask a "
        "model server; set map.predictor to onnx"
    )


def windows_at_once(settings: MappingSpec) -> int:
    """How many windows a worker asks about at the same time."""
    if settings.predictor == "triton":
        return _ASKED_OF_SERVERS
    return threads_of(settings) if settings.predictor == "openvino_bf16" else 1


_ASKED_OF_SERVERS = 4


def threads_of(settings: MappingSpec) -> int:
    """Threads of the predictor in each worker: several workers share the cores of one machine."""
    return settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
