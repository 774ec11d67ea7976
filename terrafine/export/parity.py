"""Export that counts only once the file has said the same as the network, on real windows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from terrafine.errors import ExportError
from terrafine.export.bundle import BundleInfo
from terrafine.export.session import INPUT, OUTPUTS, UInt16Array, Variant, open_graph
from terrafine.legend import Legend, UInt8Array
from terrafine.spec import ExportSpec

if TYPE_CHECKING:
    from terrafine.models import RawModel

Bytes = tuple[UInt8Array, UInt8Array, UInt8Array]
_REMEDIES: dict[Variant, str] = {
    "fp32": "choose another export.opset",
    "fp16": "leave it out of export.variants",
    "int8": "calibrate it on more windows (export.parity_windows), or leave it out of "
    "export.variants",
}


class ParityReport(BaseModel):
    """How far graph and network differ, over the valid pixels of some windows.

    ``class_agreement``: share of pixels with the same class; ``max_probability_error`` and
    ``mean_probability_error``: largest and mean difference of a probability, where both name the
    same class; ``windows``, ``pixels``: how many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_agreement: float
    max_probability_error: float
    mean_probability_error: float
    windows: int
    pixels: int


@dataclass(frozen=True)
class Floors:
    """What a graph must reach: least share of equal classes, largest error of a probability.

    The error is the worst pixel's for fp32, the mean over the pixels for the others: 8 bits move
    single pixels, and a shift of all of them leaves the classes as they are.
    """

    class_agreement: float
    probability_error: float
    variant: Variant

    @classmethod
    def of(cls, spec: ExportSpec, variant: Variant = "fp32") -> Floors:
        """The spec's."""
        if variant == "fp32":
            return cls(spec.min_class_agreement, spec.max_probability_error, variant)
        agreement, error = spec.reduced_class_agreement, spec.reduced_probability_error
        return cls(agreement[variant], error[variant], variant)

    def refusal(self, report: ParityReport) -> str:
        """Why a graph of this report is refused, and what to do; "" where it is not."""
        exact, remedy = self.variant == "fp32", _REMEDIES[self.variant]
        error = report.max_probability_error if exact else report.mean_probability_error
        # what is no number is refused
        if not report.class_agreement >= self.class_agreement:
            setting = "min_class_agreement" if exact else f"reduced_class_agreement.{self.variant}"
            return (
                f"{self.variant} graph and network agree on {report.class_agreement:.6f} of the "
                f"pixels, export.{setting} asks for {self.class_agreement}; {remedy}"
            )
        if not error <= self.probability_error:
            setting, mean = (
                ("max_probability_error", "")
                if exact
                else (f"reduced_probability_error.{self.variant}", " in the mean over the pixels")
            )
            return (
                f"{self.variant} graph and network differ by {error:.4f} in a probability{mean}, "
                f"export.{setting} allows {self.probability_error}; {remedy}"
            )
        return ""


def export_model(
    model: RawModel,
    info: BundleInfo,
    path: Path,
    windows_NCHW: UInt16Array,
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
    from terrafine.export.graph import export_onnx  # torch, which takes seconds

    _require_numbers(model, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        export_onnx(model, partial, window=window, spec=spec, info=info)
        report = check_parity(model, info, partial, windows_NCHW, Floors.of(spec), named=path)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return report


def export_reduced(
    variant: Variant,
    model: RawModel,
    info: BundleInfo,
    exact: Path,
    path: Path,
    windows_NCHW: UInt16Array,
    *,
    window: int,
    spec: ExportSpec,
) -> ParityReport:
    """:func:`export_model` of the fp16 or int8 variant.

    ``exact``: the fp32 graph, which int8 is made from. Every other window calibrates int8,
    and only the others are compared: how it does where it was not calibrated is what a map gets.
    Raises ExportError where the variant cannot be made or misses its floors.
    """
    from terrafine.export.graph import export_onnx
    from terrafine.export.variants import to_int8

    if variant == "int8" and len(windows_NCHW) < 2:
        raise ExportError(
            f"{path}: not exported: with one window int8 would be judged on what it is calibrated "
            "on; ask for two or more (export.parity_windows) of imagery that has them, or leave it "
            "out of export.variants"
        )
    compared_NCHW = windows_NCHW
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        if variant == "fp16":
            export_onnx(model, partial, window=window, spec=spec, info=info, half=True)
        else:
            to_int8(exact, partial, windows_NCHW[::2])
            compared_NCHW = windows_NCHW[1::2]
        floors = Floors.of(spec, variant)
        report = check_parity(model, info, partial, compared_NCHW, floors, named=path)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return report


def check_parity(
    model: RawModel,
    info: BundleInfo,
    onnx_path: Path,
    windows_NCHW: UInt16Array,
    floors: Floors,
    *,
    named: Path | None = None,
) -> ParityReport:
    """Compare a graph with the network it came from; ExportError where it misses ``floors``.

    ``named``: what to call the file in an error, if it is still a temporary one.
    """
    from terrafine.export.graph import ServedModel

    where = named or onnx_path
    served = ServedModel(model, info.legend)
    session, _ = open_graph(onnx_path)
    ones = [windows_NCHW[i : i + 1] for i in range(len(windows_NCHW))]
    report = compare(
        ((served.predict(one), tuple(session.run(list(OUTPUTS), {INPUT: one}))) for one in ones),
        info.legend,
    )
    if not report.pixels:
        raise ExportError(
            f"{where}: not exported: {len(windows_NCHW)} windows without a single valid pixel "
            "cannot show that the graph is right; choose windows inside the imagery"
        )
    refusal = floors.refusal(report)
    if refusal:
        raise ExportError(f"{where}: not exported: {refusal}")
    return report


def compare(pairs: Iterable[tuple[Bytes, Bytes]], legend: Legend) -> ParityReport:
    """How far two that answered the same windows differ: what one and the other said of each.

    Without a single valid pixel nothing agrees.
    """
    compared = [_compare(one, other, legend) for one, other in pairs]
    pixels = sum(c.pixels for c in compared)
    return ParityReport(
        class_agreement=sum(c.agreeing for c in compared) / max(1, pixels),
        max_probability_error=max((c.largest for c in compared), default=0.0),
        mean_probability_error=sum(c.total for c in compared) / max(1, pixels),
        windows=len(compared),
        pixels=pixels,
    )


def _require_numbers(model: RawModel, path: Path) -> None:
    """Graph and network that both say NaN would agree: classes of NaN are classes all the same."""
    import torch

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
    largest: float
    total: float


def _compare(torch_says: Bytes, onnx_says: Bytes, legend: Legend) -> _Compared:
    """One window; pixels that either calls missing count as valid, so a wrong mask shows."""
    valid = (torch_says[1] > 0) | (onnx_says[1] > 0)
    one, two = (_decided(said, legend)[valid] for said in (torch_says, onnx_says))
    enhanced = np.abs(torch_says[0].astype(int) - onnx_says[0])
    other = np.abs(torch_says[2].astype(int) - onnx_says[2])
    same_other = torch_says[1] == onnx_says[1]
    errors = np.maximum(enhanced, np.where(same_other, other, 0))[valid]
    return _Compared(
        pixels=int(valid.sum()),
        agreeing=int((one == two).sum()),
        largest=float(errors.max(initial=0)) / 255,
        total=float(errors.sum()) / 255,
    )


def _decided(said: Bytes, legend: Legend) -> UInt8Array:
    """Legend codes by plain argmax."""
    enhanced, code, other = said
    if legend.enhanced is None:
        return code
    best = np.uint8(legend.code_of(legend.enhanced))
    return np.where((enhanced > other) & (code > 0), best, code)
