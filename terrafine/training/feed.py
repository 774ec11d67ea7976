"""Batches read ahead of the network, by a thread or by processes; never more than a few."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

from torch.utils.data import DataLoader, Dataset

from terrafine.errors import TerrafineError, WorkerError
from terrafine.training.data import Batch, Examples, stack

# Batches that wait to be used, for every reader.
AHEAD = 2

Groups = Sequence[Sequence[int]]


def read_ahead(
    examples: Examples, groups: Groups, *, workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    """One batch for each of ``groups`` of positions, in their order.

    ``workers`` processes read them, or a thread of this one where it is 0. Close the generator to
    stop reading. Errors of the examples come out as they are; WorkerError when a reading process
    dies.
    """
    if workers:
        yield from _by_processes(examples, groups, workers, pin_memory)
    else:
        yield from _by_thread(examples, groups, pin_memory)


def _by_thread(examples: Examples, groups: Groups, pin_memory: bool) -> Iterator[Batch]:
    def read(group: Sequence[int]) -> Batch:
        image, target = stack(examples, group)
        return (image.pin_memory(), target.pin_memory()) if pin_memory else (image, target)

    waiting: deque[Future[Batch]] = deque()
    coming = iter(groups)
    with ThreadPoolExecutor(1, thread_name_prefix="chips") as reader:
        try:
            waiting.extend(reader.submit(read, group) for group in islice(coming, AHEAD))
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(reader.submit(read, group) for group in islice(coming, 1))
                yield batch
        finally:
            reader.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Batches(Dataset["Batch | TerrafineError"]):
    """Batch by its number. An error is handed over as what it is: torch would rewrite it."""

    examples: Examples
    groups: Groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Batch | TerrafineError:
        try:
            return stack(self.examples, self.groups[number])
        except TerrafineError as error:
            return error


def _by_processes(
    examples: Examples, groups: Groups, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    loader = DataLoader(
        _Batches(examples, groups),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        multiprocessing_context=_processes(),
    )
    try:
        for batch in loader:
            if isinstance(batch, TerrafineError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WorkerError(
            f"a process that reads chips stopped ({first}); give the machine more memory, or "
            f"lower training.loader_workers ({workers})"
        ) from error


def _processes() -> BaseContext:
    """Processes that are not forked from this one: what reads object stores does not survive it."""
    context = get_context("forkserver")
    # or else each of them, in every epoch, would import torch itself
    context.set_forkserver_preload([__name__])
    return context


def _as_it_is(batch: Any) -> Any:
    return batch
