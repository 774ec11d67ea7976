"""What a pruning did, layer by layer: what goes into ``pruning.json`` and into the report."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from terrafine.pruning.plan import PruningPlan
from terrafine.spec import PruneSpec


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrunedLayer(_Frozen):
    """One convolution: its filters before and after, and why so many went.

    ``group``: number, from 0, of the layers that share their output channels with it.
    """

    layer: str
    before: int
    removed: int
    left: int
    why: str
    group: int


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
    zeroed, and (the last) of the compact network that is handed on.
    """

    spec: PruneSpec
    parent: str
    layers: tuple[PrunedLayer, ...]
    before: Cost
    after: Cost
    agreement: dict[str, float]

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


def pruned_layers(plan: PruningPlan) -> tuple[PrunedLayer, ...]:
    """Every convolution, in the order of the forward pass."""
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
            )
        )
    return tuple(found)
