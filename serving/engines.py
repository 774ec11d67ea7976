"""The engines that a spec and this machine ask for, put into a job."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from serving.mapper.predictors import predictor_for
from serving.trainer.choose import trainer_for
from serving.triton.deploy import deploy_release
from terrafine.chips import BuildRunner, local_runner
from terrafine.mapping import MapWatch, ShardRunner, in_sequence
from terrafine.spec import MappingSpec
from terrafine.stages import Job

RAY_ADDRESS = "RAY_ADDRESS"


def on_engines(job: Job) -> Job:
    """The same job with every engine that its spec asks for."""
    return replace(
        job,
        trainer=trainer_for(job.spec.training),
        chip_runner=runner_for,
        map_runner=mapper_for,
        predictor=predictor_for,
        deployer=deploy_release,
    )


def mapper_for(spec: MappingSpec, watch: MapWatch) -> ShardRunner:
    """This process for one worker, Ray actors for more."""
    if spec.workers == 1:
        return in_sequence
    # ray takes two seconds to import, which other commands need not wait for
    from serving.mapper.runner import RayShardRunner

    return RayShardRunner(
        spec.workers,
        cpus=max(1, spec.threads),
        gpus=gpu_share(spec),
        observer=watch,
    )


def gpu_share(spec: MappingSpec) -> float:
    """Of a GPU, what one worker with a network of its own occupies: as many share each of this
    machine's as it takes, and a whole one where Ray may spread the workers over machines."""
    if spec.predictor != "torch":
        return 0.0
    import torch

    if os.environ.get(RAY_ADDRESS):
        return 1.0
    gpus = torch.cuda.device_count()
    return 1 / math.ceil(spec.workers / gpus) if gpus else 0.0


def runner_for(workers: int) -> BuildRunner:
    """Ray actors where ``RAY_ADDRESS`` names a cluster; processes of this machine elsewhere.

    A Ray of our own on one machine could do no more than its processes do.
    """
    if workers == 1 or not os.environ.get(RAY_ADDRESS):
        return local_runner(workers)
    # ray takes two seconds to import, which other commands need not wait for
    from serving.chip_builder import RayBuildRunner

    return RayBuildRunner(workers)
