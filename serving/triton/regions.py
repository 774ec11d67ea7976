"""System shared memory between a client and a Triton on the same machine.

A region belongs to one server for as long as it runs. Its name is removed as soon as the server has
mapped it, so that nothing is left in ``/dev/shm`` however the client ends.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from serving.triton.replicas import Replica, gave_up
from terrafine.errors import ServingError

log = logging.getLogger(__name__)
_SHARED = Path("/dev/shm")


class Region:
    """Memory that one server has mapped as well; ``array`` gives views into it."""

    def __init__(self, replica: Replica, size: int, *, timeout: float) -> None:
        """Make and register it.

        OSError when this machine has not enough shared memory, ``grpc.RpcError`` when the server
        cannot map it: it runs elsewhere, or allows no shared memory.
        """
        self.replica, self.size = replica, size
        self.name = f"terrafine-client-{os.getpid()}-{uuid.uuid4().hex}"
        path = _SHARED / self.name
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # reserved now: a full /dev/shm would otherwise kill the process when it is written to
            os.posix_fallocate(descriptor, 0, size)
            self._memory = mmap.mmap(descriptor, size)
            replica.stub.SystemSharedMemoryRegister(
                service_pb2.SystemSharedMemoryRegisterRequest(
                    name=self.name, key=f"/{self.name}", offset=0, byte_size=size
                ),
                timeout=timeout,
            )
        finally:
            os.close(descriptor)
            path.unlink()

    def array(self, shape: tuple[int, ...], dtype: type[np.generic], offset: int) -> Any:
        """An array that lies in the region from byte ``offset`` on."""
        return np.ndarray(shape, dtype, buffer=self._memory, offset=offset)

    def unregister(self) -> None:
        """Let the server forget it; a server that is gone has done so already."""
        with contextlib.suppress(grpc.RpcError):
            self.replica.stub.SystemSharedMemoryUnregister(
                service_pb2.SystemSharedMemoryUnregisterRequest(name=self.name), timeout=5
            )


class Regions:
    """The regions of one client, lent to one request at a time.

    ``wanted``: True (ServingError where it cannot be had), False, or "auto" (where it can; one
    warning where this machine has not enough of it).
    ``grace``: seconds after which a request that was given up has certainly ended: until then the
    server may still read or write its region, which is neither used again nor unregistered.
    Servers are told beside the requests, which do not wait for one that does not listen.
    """

    def __init__(self, wanted: bool | str, *, grace: float) -> None:
        self._wanted = wanted
        self._grace = grace
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._doubtful: list[tuple[float, Region]] = []
        self._without: set[Replica] = set()
        self._warned = False
        self._teller = ThreadPoolExecutor(1, thread_name_prefix="regions")

    def take(self, replica: Replica, size: int, *, timeout: float) -> Region | None:
        """A region of at least ``size`` bytes, or None where the request is to travel by gRPC."""
        if self._wanted is False or replica in self._without:
            return None
        with self._lock:
            free = [region for region in self._free if region.replica is replica]
            region = next(iter(free), None)
            if region is not None:
                self._free.remove(region)
        if region is not None and region.size >= size:
            return region
        if region is not None:
            self._teller.submit(region.unregister)
        try:
            return Region(replica, size, timeout=timeout)
        except (OSError, grpc.RpcError) as error:
            if isinstance(error, grpc.RpcError) and gave_up(error):
                raise
            self._do_without(replica, size, error)
            return None

    def give(self, region: Region, *, doubtful: bool = False) -> None:
        """Hand a region back; a doubtful one is never used again, and unregistered when safe."""
        with self._lock:
            if doubtful:
                self._doubtful.append((time.monotonic() + self._grace, region))
            else:
                self._free.append(region)
        self._sweep()

    def forget(self, replica: Replica) -> None:
        """A server may have been restarted: what it did not allow before it may allow now."""
        with self._lock:
            self._without.discard(replica)

    def close(self) -> None:
        """Unregister all that no request can still use; the others stay until a server ends."""
        with self._lock:
            free, self._free = self._free, []
        for region in free:
            self._teller.submit(region.unregister)
        self._sweep()
        self._teller.shutdown(wait=True)

    def _do_without(self, replica: Replica, size: int, error: Exception) -> None:
        if self._wanted is True:
            reason = error.details() if isinstance(error, grpc.RpcError) else error
            raise ServingError(
                f"{replica}: no shared memory of {size} bytes can be had with this server "
                f"({reason}); it must run on this machine, with the same /dev/shm, and have that "
                "much left; or take shared_memory=False"
            ) from error
        with self._lock:
            self._without.add(replica)
            warn = isinstance(error, OSError) and not self._warned
            self._warned |= warn
        if warn:
            log.warning(
                "%s: no shared memory of %d bytes can be had on this machine (%s), so that windows "
                "travel by gRPC; enlarge /dev/shm, or take shared_memory=False",
                replica, size, error,
            )  # fmt: skip

    def _sweep(self) -> None:
        now = time.monotonic()
        with self._lock:
            over = [region for safe, region in self._doubtful if safe <= now]
            self._doubtful = [(safe, region) for safe, region in self._doubtful if safe > now]
        for region in over:
            self._teller.submit(region.unregister)
