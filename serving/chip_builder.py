"""Cutting chips on a Ray cluster: one actor for each worker, each with the plan in its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayTaskError

from serving.ray_cluster import connected
from terrafine.chips import BuildGroup, GroupRecord
from terrafine.errors import StageError, TerrafineError

# A worker always has the next group at hand, and none hoards them.
_AHEAD = 2
_RESTARTS = 3


class Builder:
    """What an actor does: builds groups of one plan."""

    def __init__(self, build: BuildGroup) -> None:
        self._build = build

    def build(self, group: int) -> GroupRecord:
        """One group's record, once its shards are written."""
        return self._build(group)


@dataclass(frozen=True)
class RayBuildRunner:
    """A :class:`terrafine.chips.BuildRunner` on the connected cluster.

    A lost worker is started again, and its groups are built again: they come to the same bytes.
    """

    workers: int

    def __call__(self, build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        """The groups' records, each as soon as it is there.

        What a group raises is raised here as it is; StageError when a worker is lost too often.
        """
        workers = min(self.workers, len(groups))
        if workers == 0:
            return
        with connected(cpus=max(workers, os.cpu_count() or 1)):
            plan = ray.put(build)
            actor = ray.remote(num_cpus=1, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
            builders: list[Any] = [actor(Builder).remote(plan) for _ in range(workers)]
            yield from _share_out(builders, list(groups))


def _share_out(builders: Sequence[Any], groups: list[int]) -> Iterator[GroupRecord]:
    waiting = iter(groups)
    by_task: dict[Any, tuple[Any, int]] = {}

    def hand_out(builder: Any) -> None:
        for group in waiting:
            by_task[builder.build.remote(group)] = builder, group
            return

    for _ in range(_AHEAD):
        for builder in builders:
            hand_out(builder)
    while by_task:
        (task,), _ = ray.wait(list(by_task), num_returns=1)
        builder, group = by_task.pop(task)
        hand_out(builder)
        yield _record(task, group)


def _record(task: Any, group: int) -> GroupRecord:
    try:
        return cast(GroupRecord, ray.get(task))
    except RayTaskError as error:
        if isinstance(error.cause, TerrafineError):
            raise error.cause from error
        raise
    except RayActorError as error:
        raise StageError(
            f"chips of group {group}: the Ray worker that cut them died {_RESTARTS + 1} times; "
            "give the workers more memory and run the same command again to go on"
        ) from error
