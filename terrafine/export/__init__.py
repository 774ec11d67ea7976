"""Export: model bundles, the ONNX graph, and the proof that both say the same."""

from terrafine.export.bundle import BundleInfo, load_bundle, read_info, save_bundle
from terrafine.export.graph import ServedModel, export_onnx
from terrafine.export.parity import ParityReport, check_parity, export_model
from terrafine.export.session import INPUT, OUTPUTS, GraphInfo, open_graph

__all__ = [
    "INPUT",
    "OUTPUTS",
    "BundleInfo",
    "GraphInfo",
    "ParityReport",
    "ServedModel",
    "check_parity",
    "export_model",
    "export_onnx",
    "load_bundle",
    "open_graph",
    "read_info",
    "save_bundle",
]
