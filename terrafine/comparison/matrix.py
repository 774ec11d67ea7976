"""Comparisons around any spec: those of Dong et al. 2020, and the search for a fast network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from terrafine.comparison.pruned import without_misfits
from terrafine.errors import SpecError
from terrafine.recipes import overlaid
from terrafine.spec import FilterSpec, MapSpec

Overrides = dict[str, Any]

BASE = "base"
# The networks of Table 4 as the paper and the publishers of each built them.
_PUBLISHED = {"hrnet_w": 24, "unet_w": 64, "fcdensenet64_k": 12}
# Section 3.2 raises it from 1 to 3.
_IMPERVIOUS = "impervious"
_IMPERVIOUS_WEIGHTS = (1.0, 3.0)
# The paper's, with the finest branch at half the image's resolution, and a quarter.
_STRIDES = {"half": (2, 1), "quarter": (2, 2)}
# Section 3.4; and HRNet's late stages, which hold most of the parameters and are missed least
# (docs/pruning.md).
_EVEN: Overrides = {"ratio": 0.4}
_LATE: Overrides = {"stage_ratios": {"stage3": 0.6, "stage4": 0.75}}
_LATER: Overrides = {"stage_ratios": {"stage1": 0.3, "stage3": 0.75, "stage4": 0.8}}


def paper_matrix(base: MapSpec) -> dict[str, Overrides]:
    """Variant -> what it changes in ``base``; the first, :data:`BASE`, changes nothing.

    The other networks of Table 4, each as large beside its published size as ``base``'s network is
    beside its own; instance and batch norm after the first convolution; an impervious weight of 1
    and 3; and the agreement filter off, or on where ``base`` has none. What ``base`` already is is
    left out, and of its pruning what names parts that another network has not.
    """
    return {BASE: {}, **dict(_networks(base)), **dict(_factors(base))}


def search_axes(base: MapSpec) -> dict[str, dict[str, Overrides]]:
    """Axis -> option -> what it changes in ``base``: HRNet's stem strides, and how it is pruned.

    A whole network is trained for as many epochs as a pruned one in all, so that pruning is not
    praised for the time. SpecError where ``base`` already prunes.
    """
    if base.prune.active:
        raise SpecError(
            f"{base.name}: the search sets prune.ratio and prune.stage_ratios itself; take them "
            "out of the spec, or write the search into a file of its own (docs/pruning.md)"
        )
    hrnet = base.model.arch.startswith("hrnet")
    epochs = base.training.epochs + base.prune.epochs + base.prune.fine_tune_epochs
    pruned = {"even": _EVEN, **({"late": _LATE, "later": _LATER} if hrnet else {})}
    strides = {name: {"model": {"stem_strides": list(pair)}} for name, pair in _STRIDES.items()}
    return {
        **({"strides": strides} if hrnet else {}),
        "pruning": {
            "whole": {"training": {"epochs": epochs}},
            **{
                name: {"prune": {**ratios, "coupled": True, "round_to": 8}}
                for name, ratios in pruned.items()
            },
        },
    }


def crossed(axes: Mapping[str, Mapping[str, Overrides | None]]) -> dict[str, Overrides]:
    """Variant -> what it changes: every option of each axis with every option of the others.

    SpecError where two combinations would have the same name.
    """
    found: dict[str, Overrides] = {}
    for options in product(*(axis.items() for axis in axes.values())):
        merged: Overrides = {}
        for _, override in options:
            merged = overlaid(merged, override or {})
        name = "-".join(option for option, _ in options)
        if name in found:
            raise SpecError(f"search: two combinations of options are both {name}; rename one")
        found[name] = merged
    return found


def _networks(base: MapSpec) -> Iterator[tuple[str, Overrides]]:
    found = re.fullmatch(r"(.*_[a-z])([0-9]+)", base.model.arch)
    assert found is not None, "a spec's architecture ends in its size"
    family, share = found[1], int(found[2]) / _PUBLISHED[found[1]]
    for other, published in _PUBLISHED.items():
        if other != family:
            arch = f"{other}{max(1, round(published * share))}"
            model = base.model.model_copy(update={"arch": arch})
            # parts of the base's network that this one has not
            prune = without_misfits(base.model_copy(update={"model": model}))
            change: Overrides = {"model": {"arch": arch}}
            yield arch.replace("_", "-"), {**change, "prune": prune} if prune else change


def _factors(base: MapSpec) -> Iterator[tuple[str, Overrides]]:
    for norm in ("instance", "batch"):
        if norm != base.model.first_norm:
            yield f"{norm}-norm", {"model": {"first_norm": norm}}
    if _IMPERVIOUS in base.resolve_legend().names:
        for weight in _IMPERVIOUS_WEIGHTS:
            if base.training.class_weights.get(_IMPERVIOUS, 1.0) != weight:
                weights = {"class_weights": {_IMPERVIOUS: weight}}
                yield f"impervious-weight-{weight:g}", {"training": weights}
    if base.filter.min_agreement > 0:
        yield "no-filter", {"filter": {"min_agreement": 0.0}}
    else:
        floor = FilterSpec.model_fields["min_agreement"].default
        yield "filter", {"filter": {"min_agreement": floor}}
