"""The served network: raw uint16 windows in, three bytes per pixel out (DESIGN invariant 4)."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from terrafine.export.bundle import BundleInfo
from terrafine.export.session import INPUT, OUTPUTS, GraphInfo
from terrafine.export.variants import HalfNetwork, write_graph
from terrafine.legend import Legend, UInt8Array
from terrafine.models import RawModel
from terrafine.spec import ExportSpec


class ServedModel(nn.Module):
    """A model as it is served: scaling before it, softmax, class choice and bytes behind it."""

    others: Tensor
    other_codes: Tensor

    def __init__(self, model: RawModel, legend: Legend) -> None:
        super().__init__()
        self.model = model
        self.enhanced = legend.enhanced_index
        others = [i for i in range(len(legend.classes)) if i != self.enhanced]
        self.register_buffer("others", torch.tensor(others), persistent=False)
        codes = torch.tensor([legend.codes[i] for i in others], dtype=torch.int32)
        self.register_buffer("other_codes", codes, persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw windows (N, C, H, W) uint16 -> three (N, H, W) uint8.

        ``enhanced_probability``: round(255 p) of the legend's enhanced class (0 without one).
        ``other_class``: legend code of the most probable other class; 0 where a pixel is missing.
        ``other_probability``: round(255 p) of that class. Rounding may make two probabilities
        equal; where the enhanced one was larger the other is then lowered by one, so that
        "enhanced > other" says the same of the bytes as of the floats. It is never 0 there: the
        largest of at most 254 probabilities rounds to 1 or more.
        """
        logits, valid = self.model.logits_and_valid(image)
        probability = torch.softmax(logits, dim=1)
        other, index = probability.index_select(1, self.others).max(dim=1)
        other_byte = _byte(other)
        if self.enhanced is None:
            enhanced_byte = torch.zeros_like(other_byte)
        else:
            enhanced = probability[:, self.enhanced]
            enhanced_byte = _byte(enhanced)
            tied = (enhanced > other) & (enhanced_byte == other_byte)
            other_byte = other_byte - tied.to(torch.int32)
        seen = valid.to(torch.int32)
        code = self.other_codes[index]
        return (
            (enhanced_byte * seen).to(torch.uint8),
            (code * seen).to(torch.uint8),
            (other_byte * seen).to(torch.uint8),
        )

    def predict(
        self, windows_NCHW: npt.NDArray[np.uint16]
    ) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
        """:meth:`forward` on numpy arrays, without gradients."""
        device = self.others.device
        with torch.inference_mode():
            enhanced, code, other = self(torch.from_numpy(windows_NCHW).to(device))
        return enhanced.cpu().numpy(), code.cpu().numpy(), other.cpu().numpy()


def _byte(probability: Tensor) -> Tensor:
    """round(255 p) as int32, which every runtime can compare and subtract."""
    return torch.round(probability * 255.0).to(torch.int32)


def export_onnx(
    model: RawModel,
    path: Path,
    *,
    window: int,
    spec: ExportSpec,
    info: BundleInfo,
    half: bool = False,
) -> GraphInfo:
    """Write the served graph to ``path`` as ONNX; use :func:`export_model`, which also checks it.

    Input ``image`` uint16 (N, bands, window, window), N free, H and W fixed (one shape is what
    servers batch and TensorRT plans for); outputs as in :class:`ServedModel`, uint8. ``half``:
    with the network's arithmetic in fp16.
    """
    fused = _fused(model)
    if half:
        fused.network = HalfNetwork(fused.network)
    served = ServedModel(fused, info.legend)
    example = torch.zeros((2, len(info.bands), window, window), dtype=torch.uint16)
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            served,
            (example,),
            dynamo=True,
            opset_version=spec.opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: torch.export.Dim("N")}},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = _anonymous(program.model_proto)
    graph = GraphInfo(
        window=window,
        band_names=info.bands,
        scale=info.scale,
        fill=info.fill,
        legend=info.legend,
        model=info.digest,
        weights_sha256=info.weights_sha256,
    )
    write_graph(proto, graph.to_metadata(), path)
    return graph


def _fused(model: RawModel) -> RawModel:
    """A copy on the CPU whose batch norms are folded into the convolutions before them.

    The exporter would do so too, at the end: with half the modules to trace it is twice as fast.
    """
    copied = copy.deepcopy(model).cpu().eval()
    for module in copied.modules():
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                first, second = module[i], module[i + 1]
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return copied


def _anonymous(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes, which name the folders of this machine."""
    graph = proto.graph
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in items:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's remarks about packages that it could use but does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
