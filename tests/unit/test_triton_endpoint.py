"""What a server's silence means: one that hangs is told from one that has much to do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from serving.triton.endpoint import BusyError, Endpoint
from terrafine.errors import ServingError

WINDOW = np.ones((4, 8, 8), np.uint16)


@contextmanager
def silent_server(executions: Callable[[], int], status: str, words: str) -> Iterator[Endpoint]:
    """A server whose answers to requests are this error, and that has run so many batches."""

    class Client:
        def get_inference_statistics(self, *_: object, **__: object) -> object:
            found = SimpleNamespace(execution_count=executions())
            return SimpleNamespace(model_stats=[found])

        def infer(self, *_: object, **__: object) -> object:
            raise InferenceServerException(words, status=status)

        def close(self) -> None: ...

    with Endpoint("127.0.0.1:9") as endpoint:
        endpoint._client.close()
        endpoint._client = Client()
        yield endpoint


LATE = ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded")


def test_a_server_that_runs_nothing_meanwhile_hangs() -> None:
    with (
        silent_server(lambda: 7, *LATE) as server,
        pytest.raises(ServingError, match="did not answer for landcover version 3: Deadline") as it,
    ):
        server.ask("landcover", 3, WINDOW)
    assert not isinstance(it.value, BusyError)


def test_a_server_that_answers_others_meanwhile_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.triton.endpoint._PATIENCE", 0.0)
    with (
        silent_server(itertools.count().__next__, *LATE) as server,
        pytest.raises(BusyError, match="Deadline"),
    ):
        server.ask("landcover", 3, WINDOW)


@pytest.mark.parametrize("words", ["Exceeds maximum queue size", "Request timeout expired"])
def test_a_server_whose_queue_lets_nobody_in_is_busy(
    monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr("serving.triton.endpoint._PATIENCE", 0.0)
    with (
        silent_server(lambda: 7, "StatusCode.UNAVAILABLE", words) as server,
        pytest.raises(BusyError, match=words),
    ):
        server.ask("landcover", 3, WINDOW)
