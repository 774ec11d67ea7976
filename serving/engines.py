"""The engines that a spec and this machine ask for, put into a job."""

from __future__ import annotations

import os
from dataclasses import replace

from serving.trainer.choose import trainer_for
from terrafine.chips import BuildRunner, local_runner
from terrafine.stages import Job

RAY_ADDRESS = "RAY_ADDRESS"


def on_engines(job: Job) -> Job:
    """The same job with the trainer and the chip builders that its spec asks for."""
    return replace(job, trainer=trainer_for(job.spec.training), chip_runner=runner_for)


def runner_for(workers: int) -> BuildRunner:
    """Ray actors where ``RAY_ADDRESS`` names a cluster; processes of this machine elsewhere.

    A Ray of our own on one machine could do no more than its processes do.
    """
    if workers == 1 or not os.environ.get(RAY_ADDRESS):
        return local_runner(workers)
    # ray takes two seconds to import, which other commands need not wait for
    from serving.chip_builder import RayBuildRunner

    return RayBuildRunner(workers)
