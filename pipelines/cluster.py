"""How a step runs on a cluster: what it asks for, what it sees, how often it is tried again.

kfp's local runner accepts all of this and leaves it aside. ``TERRAFINE_GPUS`` at compile time says
how many GPUs a step takes that infers; default: one with a CUDA image (``-cuda``), else none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from kfp import dsl, kubernetes
from kfp.dsl.structures import ResourceSpec

from components.base import IMAGE

_GPU = "nvidia.com/gpu"
_USER = 10001
_OBJECT_STORE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")


def gpus_for(image: str) -> int:
    """How many GPUs a step of this image takes that infers."""
    return int(os.environ.get("TERRAFINE_GPUS", "-cuda" in image.rpartition("/")[2]))


GPUS = gpus_for(IMAGE)


@dataclass(frozen=True)
class Size:
    """What a step's pod asks for and may take at most: cores, memory; ``gpu``: it infers itself.

    ``tries_again``: times after a failure, with growing pauses; ``admin``: it may load models.
    """

    cpu: str
    memory: str
    tries_again: int
    gpu: bool = False
    admin: bool = False


# A spec or a gate that says no says it again: these are tried once.
ASKS = Size("1", "4G", tries_again=0)
# Reads chips or reports; a pod that was evicted starts from nothing.
READS = Size("2", "8G", tries_again=1)
# Has model servers load the release.
DEPLOYS = Size("2", "8G", tries_again=1, admin=True)
# Launches a RayJob and follows it; the next try finds it running.
LAUNCHES = Size("1", "4G", tries_again=3)
# Works itself, shard by shard or chip by chip; the next try goes on where it was.
WORKS = Size("4", "16G", tries_again=3)
# Holds the network and infers.
INFERS = Size("4", "16G", tries_again=1, gpu=True)


def on_cluster(task: dsl.PipelineTask, size: Size) -> dsl.PipelineTask:
    """The same step with all that it needs on a cluster, never from KFP's cache.

    KFP's cache knows paths, not what lies there; the stages' own digests decide instead.
    """
    task.set_caching_options(False)
    # each setter of kfp's looks through the call stack and all that is imported, which would take
    # most of a compilation
    task.container_spec.resources = ResourceSpec(
        cpu_request=size.cpu, memory_request=size.memory, memory_limit=size.memory
    )
    if size.tries_again:
        task.set_retry(
            size.tries_again,
            backoff_duration="60s",
            backoff_factor=2.0,
            backoff_max_duration="900s",
        )
    if size.gpu and GPUS:
        task.set_accelerator_type(_GPU).set_accelerator_limit(GPUS)
        kubernetes.add_toleration(task, key=_GPU, operator="Exists", effect="NoSchedule")
        kubernetes.add_node_selector(task, f"{_GPU}.present", "true")
    if size.admin:
        # what k8s/base has Triton ask for
        key = {"admin": "TERRAFINE_TRITON_ADMIN"}
        kubernetes.use_secret_as_env(task, "terrafine-triton-admin", key, optional=True)
    if size is LAUNCHES:
        # what the PodMonitor of k8s/base selects, and where it looks
        kubernetes.add_pod_label(task, "terrafine.io/launcher", "true")
        task.set_env_variable("TERRAFINE_METRICS_PORT", "9103")
    _sees(task)
    return task


def _sees(task: dsl.PipelineTask) -> None:
    """The shared volume, RayJob templates and credentials where the cluster has them, and who the
    pod is, so that a RayJob can be its own."""
    kubernetes.mount_pvc(task, pvc_name="terrafine-work", mount_path="/work")
    kubernetes.use_config_map_as_volume(
        task, "terrafine-rayjobs", mount_path="/etc/terrafine/rayjobs", optional=True
    )
    kubernetes.use_config_map_as_env(
        task, "terrafine-rayjobs", {"folder": "TERRAFINE_RAYJOBS"}, optional=True
    )
    kubernetes.use_secret_as_env(
        task, "terrafine-object-store", {key: key for key in _OBJECT_STORE}, optional=True
    )
    for name, field in (
        ("POD_NAME", "metadata.name"),
        ("POD_UID", "metadata.uid"),
        ("TERRAFINE_PIPELINE_JOB", "metadata.labels['pipeline/runid']"),
    ):
        kubernetes.use_field_path_as_env(task, name, field)
    # not the overlay's, by which its leftovers are deleted
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "terrafine-runs")
    kubernetes.add_pod_label(task, "app.kubernetes.io/component", "pipeline")
    kubernetes.set_security_context(
        task, run_as_user=_USER, run_as_group=_USER, run_as_non_root=True
    )
