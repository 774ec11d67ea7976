"""Accuracy of a map: confusion matrices, estimates with intervals, reports, and the gate."""

from terrafine.accuracy.confusion import ConfusionMatrix
from terrafine.accuracy.edges import EDGE_PIXELS, NearEdges
from terrafine.accuracy.estimate import (
    Estimate,
    Figure,
    PairedComparison,
    compare,
    estimate,
    mcnemar_mid_p,
)
from terrafine.accuracy.front import Front, Place
from terrafine.accuracy.gate import GateDecision, GateEvidence, RuleResult, decide
from terrafine.accuracy.published import DONG_MAP_3M, DONG_PRODUCT_10M
from terrafine.accuracy.report import AccuracyReport, ClassAccuracy, ReferenceKind, assess
from terrafine.accuracy.samples import Samples
from terrafine.accuracy.sampling import PointReference, RasterReference, ReadMap, sample

__all__ = [
    "DONG_MAP_3M",
    "DONG_PRODUCT_10M",
    "EDGE_PIXELS",
    "AccuracyReport",
    "ClassAccuracy",
    "ConfusionMatrix",
    "Estimate",
    "Figure",
    "Front",
    "GateDecision",
    "GateEvidence",
    "NearEdges",
    "PairedComparison",
    "Place",
    "PointReference",
    "RasterReference",
    "ReadMap",
    "ReferenceKind",
    "RuleResult",
    "Samples",
    "assess",
    "compare",
    "decide",
    "estimate",
    "mcnemar_mid_p",
    "sample",
]
