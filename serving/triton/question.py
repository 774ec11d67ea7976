"""Requests that were asked together: when one of them fails for good, nobody wants the others."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.triton.messages import Reply


class Question:
    """Windows that one caller asked about at once, in parts.

    ``parts``: neighbouring windows, and the replies to come; ``over``: nobody waits for an answer
    any more, because of the error that :meth:`give_up` was told first.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[slice, Future[list[Reply]]]] = []
        self.over = threading.Event()
        self._error: BaseException | None = None
        self._calls: set[Any] = set()
        self._lock = threading.Lock()

    def add(self, windows: slice, replies: Future[list[Reply]]) -> None:
        """One more part."""
        self.parts.append((windows, replies))
        if self.over.is_set():
            replies.cancel()

    def call(self, method: Any, request: Any, *, timeout: float) -> Any:
        """The response of a gRPC method that is called until the question is over.

        ``grpc.RpcError`` as by gRPC, ``grpc.FutureCancelledError`` once it is over.
        """
        call = method.future(request, timeout=timeout)
        with self._lock:
            self._calls.add(call)
        if self.over.is_set():
            call.cancel()
        try:
            return call.result()
        finally:
            with self._lock:
                self._calls.discard(call)

    def give_up(self, error: BaseException | None = None) -> None:
        """End all parts: those that wait do not begin, calls that are under way are cancelled."""
        with self._lock:
            if self.over.is_set():
                return
            self._error = error
            self.over.set()
            calls = tuple(self._calls)
        for _, future in self.parts:
            future.cancel()
        for call in calls:
            call.cancel()

    def replies(self) -> list[tuple[slice, list[Reply]]]:
        """The replies of all parts; what made one fail is raised, once none is under way."""
        for _, future in self.parts:
            with contextlib.suppress(CancelledError):
                future.exception()
        if self._error is not None:
            raise self._error
        return [(windows, future.result()) for windows, future in self.parts]
