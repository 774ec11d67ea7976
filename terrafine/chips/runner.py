"""Who builds a chip store's groups: this process, several of this machine, or an engine.

A group is a whole shard of the store and the same bytes whoever builds it. An engine (Ray, in
``serving``) stands behind :class:`BuildRunner` without the chips knowing it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from terrafine.chips.record import GroupRecord
from terrafine.errors import StageError

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
    """Several groups at once, each process with the plan in its memory.

    What a group raises is raised here as it is; StageError when a process dies.
    """
    # spawned, because neither GDAL's open files nor obstore's threads outlive a fork
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(groups) or 1), spawn, _adopt, (build,))
    try:
        for task in as_completed([pool.submit(_build, group) for group in groups]):
            yield task.result()
    except BrokenProcessPool as error:
        raise StageError(
            f"label: one of {workers} processes that cut chips died, probably out of memory; lower "
            "chips.workers and run the same command again to go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_adopted: list[BuildGroup] = []


def _adopt(build: BuildGroup) -> None:
    _adopted[:] = [build]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """One whose parent was killed would wait for groups for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _build(group: int) -> GroupRecord:
    return _adopted[0](group)
