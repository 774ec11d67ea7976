"""Cutting chips on a Ray cluster: one actor for each worker, each with the plan in its memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from serving.ray_cluster import connected
from terrafine.chips import BuildGroup, GroupRecord
from terrafine.errors import StageError, TerrafineError
from terrafine.progress import warn

# A worker always has the next group at hand, and none hoards them.
_AHEAD = 2
_RESTARTS = 3


class Builder:
    """What an actor does: builds groups of one plan."""

    def __init__(self, build: BuildGroup) -> None:
        self._build = build

    def answer(self) -> None:
        """Say that there was room for this worker."""

    def build(self, group: int) -> GroupRecord:
        """One group's record, once its shards are written."""
        return self._build(group)


@dataclass(frozen=True)
class RayBuildRunner:
    """A :class:`terrafine.chips.BuildRunner` on the connected cluster.

    A lost worker is started again, and its groups are built again: they come to the same bytes.
    Workers that find no room are waited for while others build; when none has found any for
    ``patience`` seconds the build ends.
    """

    workers: int
    patience: float = 600.0

    def __call__(self, build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        """The groups' records, each as soon as it is there.

        What a group raises is raised here as it is; StageError when a worker is lost too often, or
        none can be had.
        """
        workers = min(self.workers, len(groups))
        if workers == 0:
            return
        with connected(cpus=max(workers, os.cpu_count() or 1)):
            plan = ray.put(build)
            actor = ray.remote(num_cpus=1, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
            builders: list[Any] = [actor(Builder).remote(plan) for _ in range(workers)]
            try:
                yield from _share_out(builders, groups, self.patience)
            finally:
                # an error's traceback would keep them, and what they occupy, alive
                for builder in builders:
                    ray.kill(builder)


def _share_out(
    builders: Sequence[Any], groups: Sequence[int], patience: float
) -> Iterator[GroupRecord]:
    """Groups go to workers that have answered; one that has none left makes room for another."""
    waiting = deque(groups)
    asked = {builder.answer.remote(): builder for builder in builders}
    by_task: dict[Any, tuple[Any, int]] = {}
    while waiting or by_task:
        ready, _ = ray.wait([*asked, *by_task], num_returns=1, timeout=patience)
        if not ready:
            said = f"label: no Ray worker has answered for {patience:g} s; {_room(len(builders))}"
            if len(asked) == len(builders):
                raise StageError(
                    f"{said}; give the cluster more machines, or wait until it has room, and run "
                    "the same command again"
                )
            warn(said)
            continue
        (task,) = ready
        if task in asked:
            builder = asked.pop(task)
            _result(task, "a Ray worker")
        else:
            builder, group = by_task.pop(task)
            yield _result(task, f"chips of group {group}: the Ray worker that cut them")
        while waiting and _held(by_task, builder) < _AHEAD:
            group = waiting.popleft()
            by_task[builder.build.remote(group)] = builder, group
        if not _held(by_task, builder):
            ray.kill(builder)


def _held(by_task: Mapping[Any, tuple[Any, int]], builder: Any) -> int:
    return sum(holder is builder for holder, _ in by_task.values())


def _room(workers: int) -> str:
    """What workers ask for, and what is there."""
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return (
        f"each of {workers} asks for 1 CPU, and all machines together have {there.get('CPU', 0):g} "
        f"({free.get('CPU', 0):g} free)"
    )


def _result(task: Any, who: str) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, TerrafineError):
            raise error.cause from error
        raise
    except RayActorError as error:
        raise StageError(
            f"{who} died {_RESTARTS + 1} times, or could not be started; give the workers more "
            "memory and run the same command again to go on"
        ) from error
