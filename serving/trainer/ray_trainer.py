"""A training on Ray Train: N workers in one group of torch, restarted together where one is lost.

Ray starts, places and watches the workers; everything else is as in one process. A checkpoint is
the loop's own, in the task's storage, and not Ray's: so a lost worker, a lost driver and another
number of workers are all the same case, and cost at most the steps since the last checkpoint.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

import ray
from ray.train import (
    ControllerError,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from serving.ray_cluster import Cluster, connected
from serving.trainer.failures import FailureRules, cause_of, explain_loss
from serving.trainer.relay import Relay
from serving.trainer.shared import marked
from serving.trainer.worker import WorkerConfig, work
from terrafine.errors import TerrafineError, TrainingError
from terrafine.progress import replay, warn
from terrafine.spec import TrainingSpec
from terrafine.stages.fit import TrainingTask
from terrafine.storage import Storage
from terrafine.training import TrainingResult, check_workers, patiently, read_result

_SECONDS_BETWEEN_LOOKS = 0.3
_PATIENCE = 60.0


@dataclass(frozen=True)
class Scale:
    """How many workers, and what each of them takes."""

    least: int
    most: int
    loaders: int

    @classmethod
    def of(cls, spec: TrainingSpec) -> Scale:
        """As the spec asks."""
        least, most = (
            (spec.workers, spec.workers) if isinstance(spec.workers, int) else spec.workers
        )
        return cls(least, most, spec.loader_workers)

    @property
    def cpus_here(self) -> int:
        """What a Ray on this machine says it has: its processors, and never too few."""
        return max(os.cpu_count() or 1, self.least * (1 + self.loaders))

    def config(self, cluster: Cluster, *, gpus: bool) -> ScalingConfig:
        """A GPU or, on this machine, a fair share of the processors for each worker."""
        cpus = 1 + self.loaders
        if cluster.private:
            cpus = max(cpus, cluster.count("CPU") // self.most)
        return ScalingConfig(
            num_workers=self.least if self.least == self.most else (self.least, self.most),  # type: ignore[arg-type]
            use_gpu=gpus,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpus else {})},
        )


@dataclass(frozen=True)
class RayTrainer:
    """Carries out a :class:`TrainingTask` as :func:`terrafine.stages.fit.fit` does, on Ray."""

    def __call__(self, task: TrainingTask) -> TrainingResult:
        """Train; go on where an earlier call with the same task and storage was stopped.

        Raises what the loop raises, as it raised it; TrainingError when more workers were lost
        than ``training.max_failures``, there are too few GPUs, or a machine does not reach the
        task's storage; StageError without a Ray.
        """
        scale, storage = Scale.of(task.training), Storage.at(task.storage)
        check_workers(scale.most, batch=task.training.batch, chips=len(task.train))
        with (
            connected(cpus=scale.cpus_here) as cluster,
            tempfile.TemporaryDirectory() as scratch,
            marked(storage) as mark,
        ):
            gpus = _takes_gpus(task.training, scale, cluster)
            relay = Relay.start()
            config = WorkerConfig(
                task=_placed(task, gpus=gpus).model_dump_json(), mark=mark, relay=relay
            )
            trainer = TorchTrainer(
                cast(Callable[[dict[str, Any]], None], work),
                train_loop_config=dict(config),
                scaling_config=scale.config(cluster, gpus=gpus),
                # Ray keeps no checkpoint of ours, and needs a folder all the same
                run_config=RunConfig(
                    name=_run_name(task),
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=task.training.max_failures),
                    callbacks=[FailureRules(relay, task.training.max_failures)],  # type: ignore[list-item]
                ),
            )
            try:
                _fit_watched(trainer, relay, None if cluster.private else scale)
            except ControllerError as error:
                raise _unwrapped(error, cluster) from error
            except WorkerGroupError as error:
                raise _given_up(error, task, cluster) from error
        return _result(storage, task.epochs)


def _takes_gpus(spec: TrainingSpec, scale: Scale, cluster: Cluster) -> bool:
    if spec.device == "cpu":
        return False
    present = cluster.count("GPU")
    gpus = spec.device == "cuda" or present > 0
    # a cluster may still grow, this machine does not
    if gpus and scale.least > present and cluster.private:
        raise TrainingError(
            f"training.workers asks for {scale.least} workers with a GPU each, but this machine "
            f"has {present}; lower training.workers, set training.device to cpu, or name a Ray "
            "cluster in RAY_ADDRESS"
        )
    if not gpus and not cluster.private:
        warn(
            "the Ray cluster has no GPU now, so that its processors train; set training.device to "
            "cuda to wait for GPUs, or to cpu where this is meant"
        )
    return gpus


def _placed(task: TrainingTask, *, gpus: bool) -> TrainingTask:
    training = task.training.model_copy(update={"device": "cuda" if gpus else "cpu"})
    return task.model_copy(update={"training": training})


def _run_name(task: TrainingTask) -> str:
    """For Ray's dashboard and logs: stage and digest."""
    return "-".join(PurePosixPath(task.storage).parts[-2:]).strip("/")


def _fit_watched(trainer: TorchTrainer, relay: Relay, wanted: Scale | None) -> Result:
    """``trainer.fit()``, with its progress shown here, and stopped with this process.

    Where a cluster may have no room for the ``wanted`` workers, that is told after a while.
    """
    done: Future[Result] = Future()
    # beside the main thread, where Ray would swallow Ctrl-C for the rest of the process
    threading.Thread(target=_carry_out, args=(trainer, done), daemon=True).start()
    began, heard = time.monotonic(), False
    try:
        with replay() as draw:
            while not done.done():
                wait([done], timeout=_SECONDS_BETWEEN_LOOKS)
                events = relay.take(seconds=5)
                for event in events:
                    draw(event)
                heard = heard or bool(events)
                if wanted and not heard and time.monotonic() - began > _PATIENCE:
                    heard = True
                    warn(
                        f"{wanted.least} training workers are not up yet; is there room for them? "
                        "`ray status` on the cluster says what it waits for"
                    )
        return done.result()
    except (KeyboardInterrupt, SystemExit):
        ray.shutdown()
        raise


def _carry_out(trainer: TorchTrainer, done: Future[Result]) -> None:
    try:
        done.set_result(trainer.fit())
    except BaseException as error:  # noqa: BLE001 (handed over, not swallowed)
        done.set_exception(error)


def _result(storage: Storage, epochs: int) -> TrainingResult:
    """What the workers left, of all epochs; TrainingError where it does not appear here."""

    def finished() -> TrainingResult | None:
        result = read_result(storage)
        return result if result is not None and len(result.history) >= epochs else None

    result = patiently(finished)
    if result is None:
        raise TrainingError(
            f"{storage}: the workers finished, but their last checkpoint is not there; give "
            "training.storage a place that all machines reach"
        )
    return result


def _unwrapped(error: ControllerError, cluster: Cluster) -> TerrafineError:
    cause = error.controller_failure
    if isinstance(cause, TerrafineError):
        return cause
    cluster.keep_logs = True
    return TrainingError(
        f"Ray Train broke off ({type(cause).__name__}: {cause}); run the same command again to go "
        f"on from the last checkpoint{_logs(cluster)}"
    )


def _given_up(error: WorkerGroupError, task: TrainingTask, cluster: Cluster) -> TerrafineError:
    _, last = cause_of(error.worker_failures)
    if isinstance(last, TerrafineError):
        return last
    cluster.keep_logs = True
    return TrainingError(
        f"{explain_loss(error.worker_failures)}, and training.max_failures "
        f"{task.training.max_failures} allows no further try; the checkpoints in {task.storage} "
        f"are kept, run the same command again to go on{_logs(cluster)}"
    )


def _logs(cluster: Cluster) -> str:
    return f" (Ray's logs: {cluster.session / 'logs'})" if cluster.session else ""
