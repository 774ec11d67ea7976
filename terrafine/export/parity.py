"""Export that counts only once the file has said the same as the network, on real windows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from terrafine.errors import ExportError
from terrafine.export.bundle import BundleInfo
from terrafine.export.graph import ServedModel, export_onnx
from terrafine.export.session import INPUT, OUTPUTS, open_graph
from terrafine.legend import UInt8Array
from terrafine.models import RawModel
from terrafine.spec import ExportSpec

Bytes = tuple[UInt8Array, UInt8Array, UInt8Array]


@dataclass(frozen=True)
class ParityReport:
    """How far graph and network differ, over the valid pixels of some windows.

    ``class_agreement``: share of pixels with the same class; ``max_probability_error``: largest
    difference of a probability, where both name the same class; ``windows``, ``pixels``: how many.
    """

    class_agreement: float
    max_probability_error: float
    windows: int
    pixels: int


def export_model(
    model: RawModel,
    info: BundleInfo,
    path: Path,
    windows_NCHW: npt.NDArray[np.uint16],
    *,
    window: int,
    spec: ExportSpec,
) -> ParityReport:
    """Export ``model`` to ``path`` and check it; only a graph that passes gets that name.

    Parameters: ``windows_NCHW`` real raw windows (N, bands, window, window).
    Raises ExportError when graph and network differ by more than ``spec`` allows, when the windows
    show nothing or a weight is no number; OSError from the disk. A file that was at ``path`` stays
    until then.
    """
    _require_numbers(model, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        export_onnx(model, partial, window=window, spec=spec, info=info)
        report = check_parity(model, info, partial, windows_NCHW, spec, named=path)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return report


def check_parity(
    model: RawModel,
    info: BundleInfo,
    onnx_path: Path,
    windows_NCHW: npt.NDArray[np.uint16],
    spec: ExportSpec,
    *,
    named: Path | None = None,
) -> ParityReport:
    """Compare a graph with the network it came from; ExportError below the floors of ``spec``.

    ``named``: what to call the file in an error, if it is still a temporary one.
    """
    where = named or onnx_path
    served = ServedModel(model, info.legend)
    session, _ = open_graph(onnx_path)
    compared = [
        _compare(served.predict(one), tuple(session.run(list(OUTPUTS), {INPUT: one})), info)
        for one in (windows_NCHW[i : i + 1] for i in range(len(windows_NCHW)))
    ]
    pixels = sum(c.pixels for c in compared)
    if not pixels:
        raise ExportError(
            f"{where}: not exported: {len(windows_NCHW)} windows without a single valid pixel "
            "cannot show that the graph is right; choose windows inside the imagery"
        )
    report = ParityReport(
        class_agreement=sum(c.agreeing for c in compared) / pixels,
        max_probability_error=max(c.error for c in compared),
        windows=len(compared),
        pixels=pixels,
    )
    if not report.class_agreement >= spec.min_class_agreement:
        raise ExportError(
            f"{where}: not exported: graph and network agree on {report.class_agreement:.6f} of "
            f"the pixels, export.min_class_agreement asks for {spec.min_class_agreement}"
        )
    if not report.max_probability_error <= spec.max_probability_error:
        raise ExportError(
            f"{where}: not exported: graph and network differ by {report.max_probability_error:.4f}"
            f" in a probability, export.max_probability_error allows {spec.max_probability_error}"
        )
    return report


def _require_numbers(model: RawModel, path: Path) -> None:
    """Graph and network that both say NaN would agree: classes of NaN are classes all the same."""
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise ExportError(
                f"{path}: not exported: the network's {name} holds NaN or infinity; training went "
                "astray: lower training.learning_rate and train again"
            )


@dataclass(frozen=True)
class _Compared:
    pixels: int
    agreeing: int
    error: float


def _compare(torch_says: Bytes, onnx_says: Bytes, info: BundleInfo) -> _Compared:
    """One window; pixels that either calls missing count as valid, so a wrong mask shows."""
    valid = (torch_says[1] > 0) | (onnx_says[1] > 0)
    one, two = (_decided(said, info)[valid] for said in (torch_says, onnx_says))
    enhanced = np.abs(torch_says[0].astype(int) - onnx_says[0])
    other = np.abs(torch_says[2].astype(int) - onnx_says[2])
    same_other = torch_says[1] == onnx_says[1]
    errors = np.maximum(enhanced, np.where(same_other, other, 0))[valid]
    return _Compared(
        pixels=int(valid.sum()),
        agreeing=int((one == two).sum()),
        error=float(errors.max(initial=0)) / 255,
    )


def _decided(said: Bytes, info: BundleInfo) -> UInt8Array:
    """Legend codes by plain argmax."""
    enhanced, code, other = said
    if info.legend.enhanced is None:
        return code
    best = np.uint8(info.legend.code_of(info.legend.enhanced))
    return np.where((enhanced > other) & (code > 0), best, code)
