"""Which crops of an epoch which worker takes in which step: pure functions of numbers.

A step is the next ``batch`` positions of the epoch, whatever the number of workers. It is taken in
rounds: in each, every worker runs its network once, on at most ``limit`` crops. Gradients of all
rounds and workers are added up, and batch norm sees one round, so that a round and not a worker is
what the outcome depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from terrafine.training.group import Group


@dataclass(frozen=True)
class Round:
    """Crops that go through the network at once, on all workers together.

    A round of fewer crops than workers is taken ``repeats`` times, so that no worker is idle;
    means over it are the same.
    """

    positions: range
    repeats: int

    def share(self, group: Group) -> list[int]:
        """Positions that one worker takes."""
        return group.share(list(self.positions) * self.repeats)


@dataclass(frozen=True)
class EpochPlan:
    """An epoch of ``crops`` crops in steps of ``batch`` on ``workers`` workers."""

    crops: int
    batch: int
    workers: int
    micro_batch: int | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps; the last one may take fewer crops."""
        return -(-self.crops // self.batch)

    @property
    def limit(self) -> int:
        """Crops that a worker takes at once, at most."""
        share = -(-self.batch // self.workers)
        return share if self.micro_batch is None else min(share, self.micro_batch)

    def positions(self, step: int) -> range:
        """Positions of a step, counted from 0."""
        return range(step * self.batch, min((step + 1) * self.batch, self.crops))

    def rounds(self, step: int) -> list[Round]:
        """The fewest equal parts of the step of which no worker gets more than the limit."""
        positions = self.positions(step)
        count = -(-len(positions) // (self.workers * self.limit))
        while True:
            rounds = [self._round(part) for part in _parts(positions, count)]
            if all(self._fits(part) for part in rounds):
                return rounds
            # rounds of one crop, once on every worker, always fit
            count += 1

    def _round(self, positions: range) -> Round:
        return Round(positions, max(1, -(-self.workers // len(positions))))

    def _fits(self, part: Round) -> bool:
        return -(-len(part.positions) * part.repeats // self.workers) <= self.limit


def _parts(positions: range, count: int) -> Sequence[range]:
    bounds = [len(positions) * i // count for i in range(count + 1)]
    return [positions[a:b] for a, b in pairwise(bounds)]
