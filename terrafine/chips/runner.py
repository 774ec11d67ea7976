"""Who builds a chip store's groups: this process, several of this machine, or an engine.

A group is a whole shard of the store and the same bytes whoever builds it. An engine (Ray, in
``serving``) stands behind :class:`BuildRunner` without the chips knowing it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from terrafine.chips.record import GroupRecord

BuildGroup = Callable[[int], GroupRecord]


class BuildRunner(Protocol):
    """Runs ``build`` for every group, in any order, and hands back what each returns.

    ``build`` can be pickled; it is best sent to a worker once, since it carries the whole plan. It
    may run twice for one group (a lost worker), with the same outcome. Errors it raises are
    raised here, and what has not begun is then left.
    """

    def __call__(self, build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        """The groups' records, each as soon as it is there."""
        ...


def local_runner(workers: int) -> BuildRunner:
    """One group after the other in this process, or in ``workers`` processes of this machine."""
    if workers == 1:
        return in_turn

    def run(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        return in_processes(build, groups, workers)

    return run


def in_turn(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
    """One group after the other."""
    return map(build, groups)


def in_processes(build: BuildGroup, groups: Sequence[int], workers: int) -> Iterator[GroupRecord]:
    """Several groups at once, each process with the plan in its memory."""
    # spawned, because neither GDAL's open files nor obstore's threads outlive a fork
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(groups) or 1), _adopt, (build,)) as pool:
        yield from pool.imap_unordered(_build, groups)


_adopted: list[BuildGroup] = []


def _adopt(build: BuildGroup) -> None:
    _adopted[:] = [build]


def _build(group: int) -> GroupRecord:
    return _adopted[0](group)
