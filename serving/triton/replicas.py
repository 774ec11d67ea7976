"""Which of several Triton servers to ask next: round robin, and a rest for one that fails.

A gRPC channel stays with one server, so that the turns are taken here. A name with several
addresses (a headless Service) is one replica whose addresses gRPC takes in turn.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
from tritonclient.grpc import service_pb2_grpc

from terrafine.errors import ServingError

if TYPE_CHECKING:
    from serving.triton.contract import Contract

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:,/\[\]]+):([0-9]{1,5})")
# What Triton's own clients set as well: 2 GiB, the most that a gRPC message can hold.
MAX_MESSAGE = 2**31 - 1
CHANNEL = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.lb_policy_name", "round_robin"),
    # gRPC would wait for up to two minutes before it looks whether a server is back
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # trying again is decided here, where it is known what was asked
    ("grpc.enable_retries", 0),
    # a new channel is a new connection, not one that the process has already
    ("grpc.use_local_subchannel_pool", 1),
)
# Answers of Triton that have the code of a lost connection, or of a model that is not there.
_SAID = {
    "Exceeds maximum queue size": "queue_full",
    "Request timeout expired": "queue_timeout",
    "This protocol is restricted": "restricted",
    "batch-size must be <=": "batch_too_large",
    "Unable to find shared memory region": "region_unknown",
    # what a proxy over HTTP says of a message that is too large
    "status: 413": "resource_exhausted",
}
_SHORTEST_REST, _LONGEST_REST = 0.05, 2.0
# Each is replaced after a try has timed out at the soonest: nothing waits for the oldest any more.
_KEPT_CONNECTIONS = 3


def parse_url(url: str) -> tuple[str, ...]:
    """``grpc://host:port[,host:port...]`` -> the addresses; ServingError for anything else."""
    scheme, mark, rest = url.partition("://")
    addresses = tuple(rest.rstrip("/").split(","))
    matches = [_ADDRESS.fullmatch(address) for address in addresses]
    if scheme != "grpc" or not mark or not all(m and 0 < int(m[2]) < 65536 for m in matches):
        raise ServingError(
            f"{url!r} is no address of a Triton server; write grpc://host:8001, or "
            "grpc://host1:8001,host2:8001 for several"
        )
    return addresses


class Replica:
    """One Triton server: its channel, and what was found out about it.

    ``contract``: what its model takes and gives; None until asked, and again once it has failed,
    because another server may come back at the same address.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.contract: Contract | None = None
        self.failures = 0
        self.rests_until = 0.0
        self._before: list[grpc.Channel] = []
        self._lock = threading.Lock()
        self._connect()

    def __str__(self) -> str:
        return self.address

    def reconnect(self, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
        """Ask over a new connection from now on, unless that of ``stub`` has been replaced already.

        A network that forgets a connection says so to nobody, and TCP finds out after a quarter
        of an hour. Calls that are under way end on the old one: it is closed three later.
        """
        with self._lock:
            if self.stub is not stub:
                return
            self._before.append(self._channel)
            self._connect()
            if len(self._before) > _KEPT_CONNECTIONS:
                self._before.pop(0).close()

    def _connect(self) -> None:
        self._channel = grpc.insecure_channel(self.address, options=CHANNEL)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """End the connections."""
        for channel in (*self._before, self._channel):
            channel.close()


class Replicas:
    """Replicas in turn; one that failed is left alone, longer each time it fails again."""

    def __init__(
        self,
        addresses: tuple[str, ...],
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.all = [Replica(address) for address in addresses]
        self._clock, self._chance = clock, chance
        self._turn = 0
        self._lock = threading.Lock()

    def pick(self, *, but: Replica | None = None) -> tuple[Replica, float]:
        """The replica to ask next, and for how many seconds to wait before that.

        Those that rest are passed over, and ``but`` as long as another is well; when all rest it is
        the one that is ready first.
        """
        with self._lock:
            now = self._clock()
            turns = self.all[self._turn :] + self.all[: self._turn]
            chosen = min(turns, key=lambda one: (max(one.rests_until, now), one is but))
            self._turn = (self.all.index(chosen) + 1) % len(self.all)
            return chosen, max(chosen.rests_until - now, 0.0)

    def failed(self, replica: Replica) -> None:
        """Let a replica rest: 0.05 s at first, then twice as long each time, at most 2 s.

        The time is drawn between half and one and a half of that, so that clients that failed
        together do not come back together. Requests that failed side by side count once.
        """
        with self._lock:
            now = self._clock()
            if replica.rests_until <= now:
                rest = min(_SHORTEST_REST * 2**replica.failures, _LONGEST_REST)
                replica.rests_until = now + rest * (0.5 + self._chance())
                replica.failures += 1

    def answered(self, replica: Replica) -> None:
        """A replica that answers is well."""
        with self._lock:
            replica.failures, replica.rests_until = 0, 0.0

    def close(self) -> None:
        """End all connections."""
        for replica in self.all:
            replica.close()


def cause_of(error: grpc.RpcError) -> str:
    """Why a call failed: gRPC's name of it, or what Triton means by one that has several."""
    details = error.details() or ""
    said = (cause for words, cause in _SAID.items() if words in details)
    return next(said, str(error.code().name).lower())


def left(stop: float, most: float) -> float:
    """Seconds until ``stop``, at most ``most``; never so few that gRPC would not even ask."""
    return max(min(stop - time.monotonic(), most), 0.001)


def gave_up(error: grpc.RpcError) -> bool:
    """Whether the server may still be at work on what was asked: it has not answered."""
    return cause_of(error) in ("unavailable", "deadline_exceeded", "cancelled", "unknown")
