"""Export: model bundles, the ONNX graph, and the proof that both say the same.

Who only reads releases or runs their graphs, as the workers of a map do, imports no torch.
"""

from typing import TYPE_CHECKING

from terrafine.export.bundle import BundleInfo, load_bundle, read_info, save_bundle
from terrafine.export.parity import Floors, ParityReport, check_parity, export_model
from terrafine.export.release import (
    Release,
    ReleaseInfo,
    fetch_release,
    read_description,
    read_release,
    write_release,
)
from terrafine.export.session import INPUT, OUTPUTS, GraphInfo, Prediction, open_graph

if TYPE_CHECKING:
    from terrafine.export.graph import ServedModel, export_onnx
else:

    def __getattr__(name: str) -> object:
        """The names that need torch, when they are asked for."""
        if name not in ("ServedModel", "export_onnx"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from terrafine.export import graph

        return getattr(graph, name)


__all__ = [
    "INPUT",
    "OUTPUTS",
    "BundleInfo",
    "Floors",
    "GraphInfo",
    "ParityReport",
    "Prediction",
    "Release",
    "ReleaseInfo",
    "ServedModel",
    "check_parity",
    "export_model",
    "export_onnx",
    "fetch_release",
    "load_bundle",
    "open_graph",
    "read_description",
    "read_info",
    "read_release",
    "save_bundle",
    "write_release",
]
