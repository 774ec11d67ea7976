"""The comparisons of Dong et al. 2020 around any spec, one factor at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from terrafine.spec import FilterSpec, MapSpec

Overrides = dict[str, Any]

BASE = "base"
# The networks of Table 4 as the paper and the publishers of each built them.
_PUBLISHED = {"hrnet_w": 24, "unet_w": 64, "fcdensenet64_k": 12}
# Section 3.2 raises it from 1 to 3.
_IMPERVIOUS = "impervious"
_IMPERVIOUS_WEIGHTS = (1.0, 3.0)


def paper_matrix(base: MapSpec) -> dict[str, Overrides]:
    """Variant -> what it changes in ``base``; the first, :data:`BASE`, changes nothing.

    The other networks of Table 4, each as large beside its published size as ``base``'s network is
    beside its own; the other norm after the first convolution; an impervious weight of 1 and 3;
    and the agreement filter off, or on where ``base`` has none. What ``base`` already is is left
    out.
    """
    return {BASE: {}, **dict(_networks(base)), **dict(_factors(base))}


def _networks(base: MapSpec) -> Iterator[tuple[str, Overrides]]:
    found = re.fullmatch(r"(.*_[a-z])([0-9]+)", base.model.arch)
    assert found is not None, "a spec's architecture ends in its size"
    family, share = found[1], int(found[2]) / _PUBLISHED[found[1]]
    for other, published in _PUBLISHED.items():
        if other != family:
            arch = f"{other}{max(1, round(published * share))}"
            yield arch.replace("_", "-"), {"model": {"arch": arch}}


def _factors(base: MapSpec) -> Iterator[tuple[str, Overrides]]:
    norm = "batch" if base.model.first_norm == "instance" else "instance"
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
