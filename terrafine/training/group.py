"""The processes that train one network together; one process alone is a group of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Worker ``rank`` of ``size``, all of which call each method in the same order."""

    rank: int
    size: int

    @classmethod
    def here(cls) -> Group:
        """The default group of torch.distributed where one was set up, else this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return ALONE

    @property
    def leads(self) -> bool:
        """Whether this worker writes checkpoints and shows progress."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, value: float, device: torch.device) -> float:
        """Mean of a number over all workers."""
        if self.size == 1:
            return value
        return self.sum_(torch.tensor([value], dtype=torch.float64, device=device)).item() / (
            self.size
        )

    def everywhere(self, value: int, device: torch.device) -> list[int]:
        """A number of every worker, by rank."""
        values = torch.zeros(self.size, dtype=torch.int64, device=device)
        values[self.rank] = value
        return [int(n) for n in self.sum_(values).tolist()]

    def copy_from_leader_(self, tensors: Iterable[Tensor]) -> None:
        """Give every worker the leader's numbers, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def share(self, items: Sequence[int]) -> list[int]:
        """This worker's contiguous part; parts differ by one item at most."""
        start, stop = (len(items) * (self.rank + i) // self.size for i in (0, 1))
        return list(items[start:stop])


ALONE = Group(rank=0, size=1)
