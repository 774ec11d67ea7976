"""What a pruning did, layer by layer: what goes into ``pruning.json`` and into the report."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from terrafine.pruning.plan import PruningPlan
from terrafine.pruning.trace import Ids
from terrafine.spec import PruneSpec


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrunedLayer(_Frozen):
    """One convolution: its filters before and after, which of them went, and why so many.

    ``filters``: numbers, from 0, in the trained network, of those that went: nearest to the
    geometric median, together with the filters of the layers that make the same channels; None in
    records that were written before it was said. ``group``: number, from 0, of the layers that
    share their output channels with it.
    """

    layer: str
    before: int
    removed: int
    left: int
    why: str
    group: int
    filters: tuple[int, ...] | None = None

    @property
    def which(self) -> str:
        """``filters`` to be read, as "0-3, 7"; "" where none went, or the record does not say."""
        runs: list[list[int]] = []
        for number in self.filters or ():
            if runs and number == runs[-1][-1] + 1:
                runs[-1][1:] = [number]
            else:
                runs.append([number])
        return ", ".join("-".join(map(str, run)) for run in runs)


class PrunedPart(_Frozen):
    """Layers of one part of the network that fared alike: how many, and their filters."""

    part: str
    layers: int
    before: int
    left: int
    why: str


class Cost(_Frozen):
    """What a network costs, as :func:`terrafine.models.describe_spec` counts it."""

    parameters: int
    macs_per_pixel: int


class PruningRecord(_Frozen):
    """A pruning: what was asked, what went, and what it cost.

    ``parent``: digest of the model bundle before it; ``agreement``: share of the validation pixels
    on which the network and the label product agree, of the trained model, with its filters
    zeroed, and (the last) of the compact network that is handed on; ``worse_tuning``: that of a
    fine-tuning that is not handed on, because it made the compact network worse.
    """

    spec: PruneSpec
    parent: str
    layers: tuple[PrunedLayer, ...]
    before: Cost
    after: Cost
    agreement: dict[str, float]
    worse_tuning: float | None = None

    @property
    def removed(self) -> int:
        """Filters removed in all layers."""
        return sum(layer.removed for layer in self.layers)

    def parts(self) -> list[PrunedPart]:
        """The layers, summed up by part of the network (the first word of their names) and why."""
        alike: dict[tuple[str, str], list[PrunedLayer]] = {}
        for layer in self.layers:
            alike.setdefault((layer.layer.partition(".")[0], layer.why), []).append(layer)
        return [
            PrunedPart(
                part=part,
                layers=len(layers),
                before=sum(layer.before for layer in layers),
                left=sum(layer.left for layer in layers),
                why=why,
            )
            for (part, why), layers in alike.items()
        ]

    @property
    def fewer_parameters(self) -> float:
        """Share of the parameters that went."""
        return 1 - self.after.parameters / self.before.parameters

    @property
    def fewer_macs(self) -> float:
        """Share of the multiply-accumulates that went."""
        return 1 - self.after.macs_per_pixel / self.before.macs_per_pixel


def pruned_layers(plan: PruningPlan, gone: Ids) -> tuple[PrunedLayer, ...]:
    """Every convolution, in the order of the forward pass; ``gone``: ids of removed channels."""
    group_of = {layer: number for number, group in enumerate(plan.groups) for layer in group.layers}
    found = []
    for layer, ids in plan.map.outputs.items():
        group = plan.groups[group_of[layer]]
        found.append(
            PrunedLayer(
                layer=layer,
                before=len(ids),
                removed=group.remove,
                left=len(ids) - group.remove,
                why=group.why,
                group=group_of[layer],
                filters=tuple(np.flatnonzero(np.isin(ids, gone)).tolist()),
            )
        )
    return tuple(found)
