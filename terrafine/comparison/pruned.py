"""Whether a variant's network has the parts that its pruning names, known before it is trained."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from terrafine.models import build_network
from terrafine.pruning import trace_channels
from terrafine.pruning.plan import fits, require_matches
from terrafine.spec import MapSpec, ModelSpec


def require_prunable(spec: MapSpec) -> None:
    """PruningError where filters are to go and ``prune`` names a part that the network has not."""
    if spec.prune.active and (spec.prune.stage_ratios or spec.prune.exclude):
        require_matches(_layers_of(spec), spec.prune)


def without_misfits(spec: MapSpec) -> dict[str, Any]:
    """Keys of ``prune`` that take out the parts which the spec's network has not."""
    ratios, exclude = spec.prune.stage_ratios, spec.prune.exclude
    layers = _layers_of(spec) if ratios or exclude else ()
    misfits = {
        pattern
        for pattern in (*ratios, *exclude)
        if not any(fits(name, pattern) for name in layers)
    }
    changed: dict[str, Any] = {}
    if misfits.intersection(ratios):
        changed["stage_ratios"] = {part: None for part in ratios if part in misfits}
    if misfits.intersection(exclude):
        changed["exclude"] = [part for part in exclude if part not in misfits]
    return changed


def _layers_of(spec: MapSpec) -> tuple[str, ...]:
    return _layers(spec.model, len(spec.imagery.bands), len(spec.resolve_legend().classes))


@cache  # variants share networks, and following one takes seconds
def _layers(model: ModelSpec, bands: int, classes: int) -> tuple[str, ...]:
    """Names of the convolutions; no weights are made."""
    with torch.device("meta"):
        network = build_network(model, bands=bands, classes=classes)
    return tuple(trace_channels(network, bands).outputs)
