"""Which channels of a network's layers belong together: found by following one forward pass.

Channels that are added up are one channel: whoever removes it removes it from every convolution
that produces it, every norm that it passes and every convolution that reads it. torch-pruning's
dependency graph finds the same (tests compare them), in a hundred times the time, and takes an
operation that it does not know for one that keeps channels apart; here that is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from terrafine.errors import PruningError
from terrafine.models.channels import Convolution, layers_of

Ids = npt.NDArray[np.int64]

BANDS = "an input band"
CLASSES = "a class of the output"
GROUPED = "a grouped convolution"

_CONVOLUTIONS = {"conv2d", "conv_transpose2d"}
_NORMS = {"batch_norm", "instance_norm"}
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_JOINS = {"cat", "concat"}
# each channel on its own, and zero stays zero
_EACH = {
    "relu", "relu_", "dropout", "dropout2d", "interpolate", "max_pool2d", "boolean_dispatch",
    "avg_pool2d", "__getitem__", "contiguous", "fn",
}  # fmt: skip
# Height and width of the traced image: what halves five times has a pixel left.
_SIZE = 32


@dataclass(frozen=True)
class ChannelMap:
    """The channels of data in a network, by id, and the layers that have them.

    ``outputs``: convolution -> id of what each of its filters makes; ``inputs``: convolution ->
    ids of what it reads; ``norms``: norm -> ids of what passes it; ``fixed``: id -> why it stays.
    """

    outputs: Mapping[str, Ids]
    inputs: Mapping[str, Ids]
    norms: Mapping[str, Ids]
    fixed: Mapping[int, str]


def trace_channels(network: nn.Module, bands: int) -> ChannelMap:
    """Follow the channels of a normalised image (1, ``bands``, H, W) through ``network``.

    Nothing is computed. PruningError for an operation whose effect on channels is not known.
    """
    copied = copy.deepcopy(network).to("meta").eval()
    image = torch.empty(1, bands, _SIZE, _SIZE, device="meta")
    tracer = _Tracer(copied)
    tracer.begin(image)
    with torch.no_grad(), tracer:
        logits = copied(image)
    return tracer.end(logits)


class _Tracer(TorchFunctionMode):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.same = _Same()
        self.outputs: dict[str, list[int]] = {}
        self.inputs: dict[str, list[int]] = {}
        self.norms: dict[str, list[int]] = {}
        self.fixed: dict[int, str] = {}
        self._layers = dict(layers_of(network))
        self._names = {id(m.weight): name for name, m in self._layers.items()}
        # tensors are kept, so that no id is given twice
        self._ids: dict[int, tuple[Tensor, list[int]]] = {}

    def begin(self, image: Tensor) -> None:
        bands = self.same.new(image.shape[1])
        self._ids[id(image)] = (image, bands)
        self.fixed |= dict.fromkeys(bands, BANDS)

    def end(self, logits: Tensor) -> ChannelMap:
        self.fixed |= dict.fromkeys(self._of(logits), CLASSES)
        found = self.same.first
        outputs, inputs, norms = (
            {name: np.array([found(i) for i in ids]) for name, ids in table.items()}
            for table in (self.outputs, self.inputs, self.norms)
        )
        fixed = {found(i): why for i, why in self.fixed.items()}
        return ChannelMap(outputs, inputs, norms, fixed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if isinstance(result, Tensor):
            self._follow(func.__name__, [*args, *given.values()], result)
        return result

    def _follow(self, name: str, given: list[Any], result: Tensor) -> None:
        flat = [part for arg in given for part in (arg if isinstance(arg, list | tuple) else [arg])]
        tensors = [part for part in flat if isinstance(part, Tensor)]
        seen = [self._of(t) for t in tensors if id(t) in self._ids]
        if name in _CONVOLUTIONS:
            ids = self._convolution(self._name(name, tensors), seen[0])
        elif name in _NORMS:
            ids = self._pass(self.norms, self._name(name, tensors), seen[0])
        elif name in _SUMS and len({len(ids) for ids in seen}) == 1:
            ids = seen[0]
            for other in seen[1:]:
                self.same.join(ids, other)
        elif name in _JOINS:
            ids = [i for ids in seen for i in ids]
        elif name in _EACH:
            ids = seen[0]
        else:
            raise PruningError(
                f"the network calls {name}, whose effect on channels is not known to the pruning; "
                "add it to terrafine.pruning.trace"
            )
        if result.dim() != 4 or result.shape[1] != len(ids):
            raise PruningError(
                f"the network calls {name} so that {len(ids)} channels become an array of shape "
                f"{tuple(result.shape)}; such a network cannot be pruned"
            )
        self._ids[id(result)] = (result, ids)

    def _convolution(self, name: str, read: list[int]) -> list[int]:
        layer = self._layers[name]
        assert isinstance(layer, Convolution), "its weight is a convolution's"
        self._pass(self.inputs, name, read)
        if name not in self.outputs:
            self.outputs[name] = self.same.new(layer.out_channels)
        made = self.outputs[name]
        if layer.groups > 1:
            self.fixed |= dict.fromkeys([*read, *made], GROUPED)
        return made

    def _pass(self, table: dict[str, list[int]], name: str, ids: list[int]) -> list[int]:
        # a layer that is used twice ties the channels of both uses
        self.same.join(table.setdefault(name, ids), ids)
        return ids

    def _name(self, function: str, tensors: list[Tensor]) -> str:
        for tensor in tensors:
            if id(tensor) in self._names:
                return self._names[id(tensor)]
        raise PruningError(
            f"the network calls {function} with weights that are no layer's; only layers can be "
            "pruned"
        )

    def _of(self, tensor: Tensor) -> list[int]:
        return self._ids[id(tensor)][1]


class _Same:
    """Channels, and which of them are one (disjoint sets)."""

    def __init__(self) -> None:
        self._before: list[int] = []

    def new(self, count: int) -> list[int]:
        start = len(self._before)
        self._before.extend(range(start, start + count))
        return list(range(start, start + count))

    def first(self, channel: int) -> int:
        while self._before[channel] != channel:
            self._before[channel] = self._before[self._before[channel]]
            channel = self._before[channel]
        return channel

    def join(self, some: list[int], others: list[int]) -> None:
        for one, other in zip(some, others, strict=True):
            a, b = sorted((self.first(one), self.first(other)))
            self._before[b] = a
