"""Smaller numbers for the same network: fp16, and int8 calibrated on real windows.

Only what lies between the scaling and the class choice is converted. Raw numbers reach 65535,
which fp16 cannot hold, and the bytes that go out are decided in float32.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from terrafine.export.session import INPUT


class HalfNetwork(nn.Module):
    """``network`` in fp16 behind float32 input and before float32 logits; changes ``network``.

    Instance norm stays in float32: it sums over a whole window, which fp16 cannot.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.InstanceNorm2d):
                    setattr(parent, name, _InFloat(child.float()))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image (N, bands, H, W) float32 -> logits (N, classes, H, W) float32."""
        logits: Tensor = self.network(x.to(torch.float16)).to(torch.float32)
        return logits


class _InFloat(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.to(torch.float32)).to(x.dtype)
        return normed


def to_int8(source: Path, target: Path, windows_NCHW: npt.NDArray[np.uint16]) -> None:
    """Write the graph at ``source`` with 8-bit convolutions to ``target``.

    Weights are quantised by output channel, activations by tensor over the range that they take
    on ``windows_NCHW``, real raw windows (N, bands, window, window).
    """
    graph = onnx.load(source)
    with tempfile.TemporaryDirectory() as scratch, _without_advice():
        quantised = Path(scratch) / "int8.onnx"
        quantize_static(
            source,
            quantised,
            _Windows(windows_NCHW),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "ConvTranspose", "Add", "MaxPool", "Concat"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_outside_the_network(graph.graph),
        )
        converted = onnx.load(quantised)
    write_graph(converted, {entry.key: entry.value for entry in graph.metadata_props}, target)


def write_graph(proto: Any, metadata: dict[str, str], path: Path) -> None:
    """Write a graph under a name that no other has, and the same one always has.

    TensorRT keeps its engines by the names of graph and nodes and looks at no weights
    (onnxruntime#6455): two versions of one name would answer by one's weights.
    """
    onnx.helper.set_model_props(proto, metadata)
    proto.graph.name = ""
    content = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    proto.graph.name = f"terrafine_{content}"
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))


@contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser advises to fold batch norms first, which they are, on the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)


class _Windows(CalibrationDataReader):  # type: ignore[misc]
    """One window at a time."""

    def __init__(self, windows_NCHW: npt.NDArray[np.uint16]) -> None:
        self._left: Iterator[npt.NDArray[np.uint16]] = iter(windows_NCHW[:, None])

    def get_next(self) -> dict[str, npt.NDArray[np.uint16]] | None:
        """The next window as the graph takes it, None at the end."""
        window = next(self._left, None)
        return None if window is None else {INPUT: window}


def _outside_the_network(graph: Any) -> list[str]:
    """Names of the nodes before the first convolution and after the last.

    Nodes are in an order in which each comes after those it needs, and a node without a
    convolution among its ancestors scales, one without a convolution among its descendants
    decides.
    """
    convolutions = {n.name for n in graph.node if n.op_type in ("Conv", "ConvTranspose")}
    behind: set[str] = set()  # values that a convolution leads to
    after = set()
    for node in graph.node:
        if node.name in convolutions or behind & set(node.input):
            behind |= set(node.output)
            after.add(node.name)
    ahead: set[str] = set()  # values that lead to a convolution
    before = set()
    for node in reversed(graph.node):
        if node.name in convolutions or ahead & set(node.output):
            ahead |= set(node.input)
            before.add(node.name)
    return [node.name for node in graph.node if not {node.name} & after & before]
