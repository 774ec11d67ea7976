"""A stage done by a RayJob, where the cluster has a template for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.rayjob.template import (
    PIPELINE_JOB,
    STAGES,
    TEMPLATES,
    Order,
    deadline_of,
    filled,
    read_template,
    this_pod,
)
from terrafine import __version__
from terrafine.errors import StageError
from terrafine.stages import ENGINE, Job, Manifest
from terrafine.storage import Storage
from terrafine.telemetry import RayJobMetrics, serve

METRICS_PORT = "TERRAFINE_METRICS_PORT"
# as long as a network file system may show an old listing
_SECONDS_TO_APPEAR = 90.0


def launch_stage(job: Job, name: str, upstream: Sequence[Manifest]) -> None:
    """Have a RayJob do stage ``name``, where ``TERRAFINE_RAYJOBS`` names a folder of templates.

    Returns at once for a stage that is done, that is small, or that cannot begin, which
    ``ENGINE.run`` says. Raises StageError as :func:`serving.rayjob.launcher.run_rayjob` does, and
    where the RayJob succeeded but its result cannot be seen from here.
    """
    folder = os.environ.get(TEMPLATES)
    if not folder or not _is_heavy(job, name) or not _is_next(job, name, upstream):
        return
    # kubernetes takes a second to import, which every other step need not wait for
    from serving.rayjob.api import RayJobApi
    from serving.rayjob.launcher import run_rayjob

    order = order_for(job, name)
    manifest = filled(read_template(Path(folder), name), order, this_pod())
    place = order.spec_file
    Storage.at(place.parent).write(place.name, order.spec.encode())
    with _measured() as metrics:
        done = False
        try:
            run_rayjob(
                RayJobApi.connect(observer=metrics),
                manifest,
                deadline=deadline_of(manifest),
                observer=metrics,
            )
            done = True
        finally:
            metrics.ended(name, "succeeded" if done else "failed")
    _await_result(job, name, order)


def order_for(job: Job, name: str) -> Order:
    """What a RayJob for a stage has to do."""
    return Order(
        name,
        job.spec.to_yaml(),
        str(job.data),
        str(job.workdir),
        os.environ.get(PIPELINE_JOB, ""),
    )


def _is_heavy(job: Job, name: str) -> bool:
    return name in STAGES and (name != "prune" or job.spec.prune.active)


def _is_next(job: Job, name: str, upstream: Sequence[Manifest]) -> bool:
    """Whether the stage is not done, and all that it stands on is."""
    if ENGINE.find(job, name) is not None:
        return False
    digests = ENGINE.digests(job, name)
    needs = ENGINE.stages[name].stands_on(job.spec)
    return all(digests.get(given.stage) == given.digest for given in upstream) and all(
        ENGINE.find(job, need) is not None for need in needs
    )


def _await_result(job: Job, name: str, order: Order) -> None:
    until = time.monotonic() + _SECONDS_TO_APPEAR
    while ENGINE.find(job, name) is None:
        if time.monotonic() > until:
            raise StageError(
                f"RayJob {order.name} succeeded, but stage {name} is not done in {job.workdir}: "
                "delete the RayJob, give its pods the same volume at the same path and the image "
                f"of this pod (terrafine {__version__}), and run again"
            )
        time.sleep(2)


@contextmanager
def _measured() -> Iterator[RayJobMetrics]:
    """Metrics of the launcher, served meanwhile where ``TERRAFINE_METRICS_PORT`` is set."""
    registry = CollectorRegistry()
    metrics, port = RayJobMetrics(registry=registry), os.environ.get(METRICS_PORT)
    if not port:
        yield metrics
        return
    if not port.isdecimal():
        raise StageError(f"{METRICS_PORT}={port}: give a port, or unset it")
    with serve(int(port), registry, key=METRICS_PORT):
        yield metrics
