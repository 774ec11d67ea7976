"""Shards of a map on Ray actors, each with its own model and its own opened imagery."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray

from serving.mapper.fleet import AHEAD, REPORTING, RETRIES, Fleet, FleetObserver, Report
from serving.ray_cluster import connected
from terrafine.mapping import ShardKey, ShardReceipt, ShardWriter
from terrafine.mapping.run import Receipts, WriteShard


class Mapper:
    """What an actor does: maps shards of one run."""

    def __init__(self, write: WriteShard) -> None:
        self._write = write

    def report(self) -> Report:
        """How this worker stands; answered while it maps."""
        replaces = ray.get_runtime_context().was_current_actor_reconstructed
        if not isinstance(self._write, ShardWriter):
            return Report(os.getpid(), replaces, {}, ())
        return Report(os.getpid(), replaces, self._write.failed_tries, self._write.answered())

    def map(self, key: ShardKey) -> tuple[int, ShardReceipt]:
        """The id of this process, and the receipt of a shard once it is written."""
        return os.getpid(), self._write(key)


@dataclass(frozen=True)
class RayShardRunner:
    """A :class:`terrafine.mapping.ShardRunner` on the connected cluster.

    A worker that dies is started again, and its shards are computed again: to the same bytes.
    ``cpus``, ``gpus``: what each worker occupies on one machine. Workers that find no room, or
    have not answered for ``silence`` seconds, are waited for while others map; when none has
    answered for ``patience`` seconds the map ends.
    """

    workers: int
    cpus: int = 1
    gpus: float = 0.0
    observer: FleetObserver | None = None
    silence: float = 60.0
    patience: float = 600.0

    def __call__(self, shards: Sequence[ShardKey], write: WriteShard) -> Receipts:
        """Receipts, each as soon as it is there, of at most two shards per worker at a time.

        What a shard raises is raised here as it is; StageError when one loses its worker again
        and again, no worker can be had, or the cluster is gone.
        """
        workers = min(self.workers, len(shards))
        if workers == 0:
            return
        with connected(cpus=max(workers * self.cpus, os.cpu_count() or 1)):
            run = ray.put(write)
            if isinstance(write, ShardWriter):
                write.forget_predictor()
            actor = cast(Any, ray).remote(
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                max_restarts=-1,
                max_task_retries=RETRIES,
                max_concurrency=AHEAD,
                concurrency_groups={REPORTING: 1},
            )(Mapper)
            mappers: list[Any] = [actor.remote(run) for _ in range(workers)]
            needs = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
            fleet = Fleet(
                mappers, shards, needs=needs, silence=self.silence, patience=self.patience,
                observer=self.observer,
            )  # fmt: skip
            try:
                yield from fleet.receipts()
            finally:
                # an error's traceback would keep them, and what they occupy, alive
                for mapper in mappers:
                    ray.kill(mapper)
