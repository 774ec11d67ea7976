"""How many filters each layer loses, and why: from the spec's ``prune`` section and a network."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from terrafine.errors import PruningError
from terrafine.pruning.trace import ChannelMap, trace_channels
from terrafine.spec import PruneSpec


@dataclass(frozen=True)
class Group:
    """Convolutions that make the same channels (mostly one), which lose ``remove`` of them.

    ``why``: what decided that.
    """

    layers: tuple[str, ...]
    channels: tuple[int, ...]
    remove: int
    why: str

    @property
    def left(self) -> int:
        """Channels that stay."""
        return len(self.channels) - self.remove


@dataclass(frozen=True)
class PruningPlan:
    """Every convolution of a network in its group, in the order of the forward pass."""

    map: ChannelMap
    groups: tuple[Group, ...]


def plan_pruning(network: nn.Module, spec: PruneSpec, *, bands: int) -> PruningPlan:
    """What ``spec`` takes from each layer of ``network``; the weights do not matter.

    Of n filters with ratio r, the smaller whole number of r n goes, fewer where those left are
    rounded up to a multiple of ``round_to``; one always stays. Input bands and classes stay.
    PruningError for a pattern that fits no layer, and for a network that cannot be followed.
    """
    found = trace_channels(network, bands)
    require_matches(found.outputs, spec)
    return PruningPlan(found, tuple(_group(layers, found, spec) for layers in _together(found)))


def _together(found: ChannelMap) -> list[tuple[str, ...]]:
    """Convolutions that share an output channel, in the order of the first of them."""
    groups: list[tuple[set[int], list[str]]] = []
    for name, ids in found.outputs.items():
        joined, layers = set(ids.tolist()), [name]
        apart = []
        for group in groups:
            if joined.isdisjoint(group[0]):
                apart.append(group)
            else:
                joined, layers = joined | group[0], group[1] + layers
        groups = [*apart, (joined, layers)]
    order = {name: place for place, name in enumerate(found.outputs)}
    sorted_layers = [tuple(sorted(layers, key=order.__getitem__)) for _, layers in groups]
    return sorted(sorted_layers, key=lambda layers: order[layers[0]])


def _group(layers: tuple[str, ...], found: ChannelMap, spec: PruneSpec) -> Group:
    channels = tuple(sorted({i for name in layers for i in found.outputs[name].tolist()}))
    kept = _kept_because(layers, channels, found, spec)
    if kept is not None:
        return Group(layers, channels, 0, kept)
    ratios = {name: _ratio(name, spec) for name in layers}
    lowest = min(layers, key=ratios.__getitem__)
    ratio = ratios[lowest]
    remove = _removed(len(channels), ratio, spec.round_to)
    why = f"ratio {ratio:g}"
    if ratio < max(ratios.values()):
        why += f", the smallest of its coupled layers ({lowest})"
    if remove < _removed(len(channels), ratio, 1):
        why += f", left rounded up to a multiple of {spec.round_to}"
    return Group(layers, channels, remove, why)


def _kept_because(
    layers: Sequence[str], channels: Sequence[int], found: ChannelMap, spec: PruneSpec
) -> str | None:
    for channel in channels:
        if channel in found.fixed:
            return f"makes {found.fixed[channel]}"
    for name in layers:
        for pattern in spec.exclude:
            if fits(name, pattern):
                other = "" if len(layers) == 1 else f" ({name})"
                return f"prune.exclude {pattern}{other}"
    if len(layers) > 1 and not spec.coupled:
        return "last before a sum with other layers"
    if any(len(found.outputs[name]) < len(channels) for name in layers):
        return "its channels are added to parts of other layers'"
    return None


def _ratio(name: str, spec: PruneSpec) -> float:
    own = [ratio for pattern, ratio in spec.stage_ratios.items() if fits(name, pattern)]
    return own[-1] if own else spec.ratio


def _removed(filters: int, ratio: float, round_to: int) -> int:
    # 0.29 of 100 is 28.999999999999996 in floating point
    left = max(1, filters - math.floor(ratio * filters + 1e-9))
    return filters - min(filters, -(-left // round_to) * round_to)


def fits(layer: str, pattern: str) -> bool:
    """Whether a pattern names a layer, or a part of the network that it is in."""
    return fnmatchcase(layer, pattern) or fnmatchcase(layer, f"{pattern}.*")


def require_matches(layers: Collection[str], spec: PruneSpec) -> None:
    """PruningError for a pattern of ``spec`` that fits none of a network's layers."""
    named: Mapping[str, Iterable[str]] = {
        "prune.stage_ratios": spec.stage_ratios,
        "prune.exclude": spec.exclude,
    }
    for key, patterns in named.items():
        for pattern in patterns:
            if not any(fits(name, pattern) for name in layers):
                parts = dict.fromkeys(name.partition(".")[0] for name in layers)
                raise PruningError(
                    f"{key}: {pattern!r} fits no layer of this network; its parts are "
                    f"{', '.join(parts)}, one of its layers is {next(iter(layers))!r}"
                )
