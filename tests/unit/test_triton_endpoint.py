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

WINDOW = np.ones((1, 4, 8, 8), np.uint16)


Answer = Callable[[float], object]


@contextmanager
def server_that(
    answers: Answer, executions: Callable[[], int], batch_seconds: float = 0.0
) -> Iterator[Endpoint]:
    """A server that answers so a request with this patience, and has run so many batches, each of
    which took it so long."""

    class Client:
        def get_inference_statistics(self, *_: object, **__: object) -> object:
            count = executions()
            infer = SimpleNamespace(count=count, ns=count * batch_seconds * 1e9)
            sizes = [SimpleNamespace(compute_infer=infer)]
            found = SimpleNamespace(execution_count=count, batch_stats=sizes)
            return SimpleNamespace(model_stats=[found])

        def infer(self, *_: object, client_timeout: float) -> object:
            return answers(client_timeout)

        def close(self) -> None: ...

    with Endpoint("127.0.0.1:9") as endpoint:
        endpoint._client.close()
        endpoint._client = Client()
        yield endpoint


def error(status: str, words: str) -> Answer:
    def answer(patience: float) -> object:
        raise InferenceServerException(words, status=status)

    return answer


def once_free(seconds: float) -> Answer:
    """An answer when the batch under way has ended, and no word where nobody waits for that."""
    said = np.zeros((1, 8, 8), np.uint8)

    def answer(patience: float) -> object:
        if patience < seconds:
            error(*LATE)(patience)
        return SimpleNamespace(as_numpy=lambda name: said)

    return answer


LATE = ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded")


def test_a_server_that_runs_nothing_meanwhile_hangs() -> None:
    with (
        server_that(error(*LATE), lambda: 7) as server,
        pytest.raises(ServingError, match="did not answer for landcover version 3: Deadline") as it,
    ):
        server.ask("landcover", 3, WINDOW)
    assert not isinstance(it.value, BusyError)


def test_a_server_that_answers_others_meanwhile_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.triton.endpoint._QUEUE_SECONDS", 0.0)
    with (
        server_that(error(*LATE), itertools.count().__next__) as server,
        pytest.raises(BusyError, match="Deadline"),
    ):
        server.ask("landcover", 3, WINDOW)


@pytest.mark.parametrize(
    ("executions", "batch_seconds"), [(0, 0), (7, 5.7), (7, 300)], ids=["none", "small", "large"]
)
def test_batch_that_takes_long_is_waited_for_as_long_as_batches_take(
    executions: int, batch_seconds: float
) -> None:
    """A full batch of the paper's network takes a CPU 46 s, whatever it has been seen to run."""
    slow = once_free(max(46, batch_seconds * 1.5))
    with server_that(slow, lambda: executions, batch_seconds) as server:
        assert server.ask("landcover", 3, WINDOW).enhanced_NHW.shape == (1, 8, 8)


@pytest.mark.parametrize("words", ["Exceeds maximum queue size", "Request timeout expired"])
def test_a_server_whose_queue_lets_nobody_in_is_busy(
    monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr("serving.triton.endpoint._QUEUE_SECONDS", 0.0)
    with (
        server_that(error("StatusCode.UNAVAILABLE", words), lambda: 7) as server,
        pytest.raises(BusyError, match=words),
    ):
        server.ask("landcover", 3, WINDOW)
