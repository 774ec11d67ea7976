"""One connection to Ray: the cluster that ``RAY_ADDRESS`` names, or one started on this machine.

A Ray of our own leaves nothing behind: it ends with the work, with this process, and its session
folder (under ``RAY_TMPDIR``, /tmp by default) is removed unless only its logs can explain what
went wrong.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import ray

from terrafine.errors import StageError

ADDRESS_VARIABLE = "RAY_ADDRESS"

# Objects in Ray's store are small here: pixels and weights go through storage.
_OBJECT_STORE_BYTES = 100_000_000
_SECONDS_TO_ANSWER = 10
# A private Ray on one machine: nobody announces that the machine is about to be taken away, nobody
# scrapes Ray's own metrics, a lost worker is noticed sooner, a busy machine may be slow to start
# the workers, and they are as urgent as the process that waits for them (Ray would add 15 to
# their niceness).
_LOCAL_SETTINGS: Mapping[str, str] = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_worker_niceness": "0",
}

log = logging.getLogger(__name__)


@dataclass
class Cluster:
    """What this process is connected to."""

    private: bool
    """Started by us on this machine, and gone after the work."""
    session: Path | None
    """Folder of a private Ray's logs."""
    keep_logs: bool = False
    """Set where only Ray's own logs can explain what went wrong."""

    def count(self, resource: str) -> int:
        """How many of a resource ("CPU", "GPU") are there now, in use or not."""
        return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


@contextmanager
def connected(*, cpus: int) -> Iterator[Cluster]:
    """Ray, for as long as the block lasts; a private one gets ``cpus`` (it counts, never pins).

    A connection that is there already is used and left alone. StageError when the cluster that
    ``RAY_ADDRESS`` names does not answer, or Ray cannot be started here.
    """
    if ray.is_initialized():
        yield Cluster(private=False, session=None)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get(ADDRESS_VARIABLE)
    main = threading.current_thread() is threading.main_thread()
    with _signals_kept() if main else nullcontext():
        cluster = _join(address) if address else _start(cpus)
        if main:
            # Ray's own would abort the process in the end
            signal.signal(signal.SIGTERM, _leave)
        try:
            yield cluster
        finally:
            ray.shutdown()
            if cluster.session is not None and not cluster.keep_logs:
                shutil.rmtree(cluster.session, ignore_errors=True)


def _join(address: str) -> Cluster:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(
            f"{ADDRESS_VARIABLE}={address}: no Ray cluster answers there ({reason}); correct it, "
            "or unset it to run on this machine"
        ) from error
    return Cluster(private=False, session=None)


def _knock(address: str) -> None:
    """OSError when nobody listens at HOST:PORT, which would take Ray minutes to find out."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "//" not in address:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


def _start(cpus: int) -> Cluster:
    for name, value in _LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Ray would write a token of its own into the home folder, which may be read-only
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        context = ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    except Exception as error:  # which is what Ray raises on a machine that is too busy
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(
            f"Ray cannot be started on this machine ({reason}); free processors, memory and space "
            f"in {os.environ.get('RAY_TMPDIR', '/tmp')} (or point RAY_TMPDIR elsewhere), or set "
            "training.workers to 1 to do without it"
        ) from error
    session: str = cast(Any, context).address_info["session_dir"]
    return Cluster(private=True, session=Path(session))


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray replaces the handlers of the signals that end a process; put them back after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
