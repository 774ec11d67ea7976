"""A model on Triton servers, asked like one in this process (``terrafine.mapping.Predictor``).

Raw uint16 windows go out, three bytes per pixel come back. A request that fails for a reason that
passes (a server that restarts, a full queue, a lost connection) is sent again, to another replica
where there is one, until its deadline; every other reason is a ServingError. docs/triton-client.md
says the same for clients in other languages.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.triton.contract import Contract, described, difference, fetch_contract
from serving.triton.messages import (
    Answer,
    Reply,
    build_request,
    largest_batch,
    read_response,
    read_statistics,
    region_bytes,
    runs,
    too_large,
)
from serving.triton.question import Question
from serving.triton.regions import Regions
from serving.triton.replicas import (
    MAX_MESSAGE,
    Replica,
    Replicas,
    cause_of,
    gave_up,
    left,
    parse_url,
)
from terrafine.errors import ServingError
from terrafine.export.session import GraphInfo, UInt16Array
from terrafine.legend import Legend
from terrafine.telemetry import RequestRecord, VersionStatistics

# Ask for the release that is served when the client connects, and for no other after that.
CHAMPION = "champion"
# seconds for a question that a server answers at once
_QUESTION = 10.0
# seconds after which no server writes an answer any more that nobody waits for
_GRACE = 600.0
_USELESS_TO_REPEAT = {
    "invalid_argument": "the request was refused",
    "restricted": "the server allows it to nobody without its header",
    "unimplemented": "this is no Triton, or an endpoint of it is switched off",
    "permission_denied": "the server does not allow it",
    "unauthenticated": "the server wants credentials",
}


class Observer(Protocol):
    """Who is told of requests (``terrafine.telemetry.ServingMetrics``)."""

    def request(self, record: RequestRecord) -> None:
        """A request was answered."""

    def failure(self, model: str, cause: str) -> None:
        """A try failed and is repeated; ``cause`` is gRPC's name of it."""


class _Failure(Exception):
    """A try that failed although the server answered."""


class TritonPredictor:
    """A model on one or several Triton servers.

    Parameters: ``url`` ``grpc://host:port[,host:port...]``, replicas are asked in turn; ``model``
    its name there; ``release`` digest of the only release that may answer, or "champion" for the
    one served now, so that one map never mixes two (default: whichever is served, at any time);
    ``engine`` the only one that may run that release (``serving.triton.config.engine``; default:
    the one that does at first), since others give other bytes;
    ``shared_memory`` with a server on this machine: True, False, or "auto", where it can be had;
    ``in_flight`` most requests at the same time; ``max_batch`` most windows per request (default:
    what the model takes); ``deadline`` seconds for one request with all its tries; ``patience``
    seconds for one try; ``connect`` seconds, up to ``deadline``, until a server must have answered
    at first (few, since a server that is not there then is more often a wrong address than one that
    restarts); ``max_message`` most bytes of a message, where a proxy allows less than gRPC's 2 GiB.

    Safe for threads. Raises ServingError when no server is there, the model is not ready or is
    none of terrafine's, or the release is not served.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "landcover",
        release: str | None = None,
        engine: str | None = None,
        shared_memory: bool | Literal["auto"] = "auto",
        in_flight: int = 4,
        max_batch: int | None = None,
        deadline: float = 120.0,
        patience: float = 60.0,
        connect: float = 10.0,
        max_message: int = MAX_MESSAGE,
        observer: Observer | None = None,
    ) -> None:
        self.url, self.model = url, model
        self.release = None if release == CHAMPION else release
        self._engine, self._kept = engine, ""
        self._deadline, self._patience = deadline, patience
        self._observer = observer
        self._replicas = Replicas(parse_url(url))
        self._regions = Regions(shared_memory, grace=_GRACE)
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="triton")
        self._given_up = threading.Event()
        self._questions: set[Question] = set()
        self._agreed: GraphInfo | None = None
        self._without_release: set[Replica] = set()
        try:
            contract = self._connect(min(connect, deadline))
            if release == CHAMPION:
                self.release = contract.releases[contract.newest]
            self._kept = self._version(contract) or contract.newest
            self._engine = engine or contract.engines[self._kept] or None
            self.info = self._agreed = contract.graphs[self._kept]
            most = min(contract.max_batch, max_batch or contract.max_batch)
            self._batch = largest_batch(self.info, most, max_message, url)
        except ServingError:
            self.close()
            raise

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self.info.window

    def require(self, *, legend: Legend, fill: int) -> None:
        """ServingError unless the model says ``legend``'s codes and takes ``fill`` for missing."""
        if self.info.legend.digest != legend.digest:
            raise ServingError(
                f"{self.url}: model {self.model!r} says the codes of another legend "
                f"({self.info.legend.name!r}: {', '.join(self.info.legend.names)}; wanted "
                f"{legend.name!r}: {', '.join(legend.names)}); deploy a model of this legend"
            )
        if self.info.fill != fill:
            raise ServingError(
                f"{self.url}: model {self.model!r} takes {self.info.fill} for a missing pixel, but "
                f"the imagery marks missing pixels by {fill}; set imagery.nodata as it was when "
                "the model was trained"
            )

    def predict(self, windows_NCHW: UInt16Array) -> Answer:
        """Classify windows of shape (N, bands, window, window); ServingError on another shape.

        Where one of several requests fails, the others are cancelled before the error is raised.
        """
        with self.question(windows_NCHW) as question:
            return Answer.joined(len(windows_NCHW), self.window, question.replies())

    @contextmanager
    def question(self, windows_NCHW: UInt16Array) -> Iterator[Question]:
        """Begin to classify windows; what is under way at the end is given up.

        Windows without a single valid pixel are in none of its parts: no server is asked.
        """
        expected = (self.info.bands, self.window, self.window)
        if windows_NCHW.shape[1:] != expected or windows_NCHW.dtype != np.uint16:
            raise ServingError(
                f"{self.url}: model {self.model!r} takes uint16 windows of shape "
                f"(N, {', '.join(map(str, expected))}), not {windows_NCHW.dtype} "
                f"{windows_NCHW.shape}; cut them as the model was exported"
            )
        if not len(windows_NCHW):
            raise ServingError(f"{self.url}: an empty batch was to be sent; give windows")
        valid_N = (windows_NCHW != self.info.fill).all(axis=1).any(axis=(1, 2))
        question = Question()
        self._questions.add(question)
        try:
            if self._given_up.is_set():
                question.give_up(self._abandoned())
            for part in runs(valid_N, self._batch):
                question.add(part, self._pool.submit(self._ask, question, windows_NCHW[part]))
            yield question
        finally:
            question.give_up()
            self._questions.discard(question)

    def statistics(self) -> list[VersionStatistics]:
        """What the servers counted since they started: each replica's, version by version."""
        request = service_pb2.ModelStatisticsRequest(name=self.model)
        found: list[VersionStatistics] = []
        for replica in self._replicas.all:
            try:
                response = replica.stub.ModelStatistics(request, timeout=_QUESTION)
            except grpc.RpcError as error:
                raise ServingError(
                    f"{replica}: no statistics of model {self.model!r} can be had "
                    f"({error.details()}); start the server, or deploy the model"
                ) from error
            found += read_statistics(response, server=str(replica))
        return found

    def give_up(self) -> None:
        """End what is in flight at once, with a ServingError; nothing can be asked after that."""
        self._given_up.set()
        for question in tuple(self._questions):
            question.give_up(self._abandoned())
        self._replicas.close()

    def close(self) -> None:
        """Wait for what is in flight, let go of shared memory and connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._regions.close()
        self._replicas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _abandoned(self) -> ServingError:
        return ServingError(
            f"{self.url}: model {self.model!r} is not asked any more, it was given up; connect anew"
        )

    def _connect(self, seconds: float) -> Contract:
        """The contract of the first replica that answers; the others are checked when asked."""
        stop = time.monotonic() + seconds
        reason = "no time to ask"
        for replica in self._turns(stop, self._given_up):
            stub = replica.stub
            try:
                contract = self._checked(replica, stop)
                self._chosen(replica, contract)
            except (grpc.RpcError, _Failure) as error:
                reason = self._judged(replica, stub, error)
            else:
                return contract
        raise ServingError(
            f"{self.url}: model {self.model!r} is not ready ({reason}); start the server, deploy "
            "the model with `terrafine deploy`, or correct the address"
        )

    def _turns(self, stop: float, over: threading.Event) -> Iterator[Replica]:
        """Replicas to try in turn, until ``stop`` or ``over``; waits while all of them rest.

        The one that was tried last is not tried again as long as another is well.
        """
        replica = None
        while True:
            replica, wait = self._replicas.pick(but=replica)
            if time.monotonic() + wait >= stop or over.wait(wait):
                return
            yield replica

    def _ask(self, question: Question, batch_NCHW: UInt16Array) -> list[Reply]:
        """A batch in one request, or in several where the model takes fewer windows by now.

        What makes one of them fail ends the question, which tells who asked.
        """
        replies: list[Reply] = []
        try:
            while len(batch_NCHW) and not question.over.is_set():
                replies.append(self._request(question, batch_NCHW))
                batch_NCHW = batch_NCHW[len(replies[-1].arrays[0]) :]
        except BaseException as error:
            question.give_up(error)
            raise
        return replies

    def _request(self, question: Question, batch_NCHW: UInt16Array) -> Reply:
        """One request about a batch's first windows, tried until it is answered or too late."""
        started = time.monotonic()
        stop = started + self._deadline
        reason = "every replica rests"
        for tries, replica in enumerate(self._turns(stop, question.over), start=1):
            stub = replica.stub
            try:
                reply = self._try(question, replica, batch_NCHW, stop)
            except (grpc.RpcError, _Failure) as error:
                reason = self._judged(replica, stub, error)
                continue
            self._replicas.answered(replica)
            if self._observer is not None:
                seconds = time.monotonic() - started
                self._observer.request(reply.record(self.model, seconds=seconds, tries=tries))
            return reply
        raise ServingError(
            f"{self.url}: model {self.model!r} gave no answer within {self._deadline:g} s, the "
            f"last try ended with: {reason}; see that the server is up and keeps up, or give a "
            "longer deadline"
        )

    def _try(
        self, question: Question, replica: Replica, batch_NCHW: UInt16Array, stop: float
    ) -> Reply:
        """The reply about as many of a batch's first windows as the replica's model takes."""
        until = min(stop, time.monotonic() + self._patience)
        contract = self._checked(replica, until)
        version = self._chosen(replica, contract)
        batch_NCHW = batch_NCHW[: contract.max_batch]
        where = f"{replica}: model {self.model!r}"
        size = region_bytes(batch_NCHW)
        region = self._regions.take(replica, size, timeout=left(until, _QUESTION))
        doubtful = True
        try:
            request = build_request(self.model, version, batch_NCHW, region)
            seconds = left(until, self._patience)
            response = question.call(replica.stub.ModelInfer, request, timeout=seconds)
            doubtful = False
            arrays = read_response(response, batch_NCHW, region, self.info.legend, where=where)
        except grpc.RpcError as error:
            doubtful = gave_up(error) or cause_of(error) == "region_unknown"
            if region is None and cause_of(error) == "resource_exhausted":
                size = request.ByteSize()
                raise too_large(batch_NCHW, size, error.details(), where=where) from error
            raise
        finally:
            if region is not None:
                self._regions.give(region, doubtful=doubtful)
        return Reply(
            arrays,
            version=response.model_version,
            release=self._release(replica, contract, response.model_version, stop),
            shared_memory=region is not None,
            sent=request.ByteSize(),
            received=response.ByteSize(),
        )

    def _checked(self, replica: Replica, stop: float) -> Contract:
        """What a replica's model takes, asked for once and again after it failed."""
        if replica.contract is None:
            found = fetch_contract(replica, self.model, stop=stop, most=_QUESTION)
            self._require_same(replica, found, self._version(found) or found.newest)
            replica.contract = found
        return replica.contract

    def _require_same(self, replica: Replica, contract: Contract, version: str) -> None:
        """ServingError when a version takes or means something else than was agreed first."""
        different = self._agreed and difference(self._agreed, contract.graphs[version])
        if different:
            raise ServingError(
                f"{replica}: model {self.model!r} is another one than it was, or than on the other "
                f"replicas: version {version} has {different}; begin anew once the servers agree, "
                "or ask for a release"
            )

    def _version(self, contract: Contract) -> str | None:
        """The version that serves the release asked for, the same one as long as it does."""
        if self.release is None:
            return None
        return contract.version_of(self.release, engine=self._engine, kept=self._kept)

    def _chosen(self, replica: Replica, contract: Contract) -> str:
        """The version to name in a request; "" lets the server choose."""
        version = self._version(contract)
        if version is not None or self.release is None:
            self._without_release.discard(replica)
            return version or ""
        self._without_release.add(replica)
        wanted = f"release {described(self.release, self._engine)}"
        if len(self._without_release) == len(self._replicas.all):
            raise ServingError(
                f"{self.url}: {wanted} of model {self.model!r} is not served (any more); served: "
                f"{contract.served}; promote it again, or begin anew with what is served"
            )
        raise _Failure(f"{replica} does not serve {wanted}")

    def _release(self, replica: Replica, contract: Contract, version: str, stop: float) -> str:
        """Digest of the release that answered; its version may be newer than what is known."""
        if version not in contract.graphs:
            replica.contract = None
            contract = self._checked(replica, stop)
        if version not in contract.graphs:
            raise _Failure(f"{replica} answered by version {version}, which it does not list")
        self._require_same(replica, contract, version)
        return contract.releases[version]

    def _judged(
        self,
        replica: Replica,
        stub: service_pb2_grpc.GRPCInferenceServiceStub,
        error: grpc.RpcError | _Failure,
    ) -> str:
        """Why a try failed, once it is worth another one; ServingError where it is not."""
        if isinstance(error, _Failure):
            cause, reason = "release", str(error)
        else:
            cause = cause_of(error)
            reason = f"{replica}: {cause.replace('_', ' ')}: {error.details()}"
        if cause in _USELESS_TO_REPEAT:
            raise ServingError(
                f"{self.url}: model {self.model!r}: {_USELESS_TO_REPEAT[cause]} ({reason})"
            ) from error
        if self._observer is not None:
            self._observer.failure(self.model, cause)
        if cause != "region_unknown":
            self._replicas.failed(replica)
        if cause == "deadline_exceeded":
            replica.reconnect(stub)
        if cause not in ("queue_full", "queue_timeout"):
            # another server, or another version of the model, may be there next time
            replica.contract = None
            self._regions.forget(replica)
        return reason


class AsyncTritonPredictor:
    """A :class:`TritonPredictor` for asyncio: as many ``predict`` at once as one likes.

    ``async with await AsyncTritonPredictor.connect(url) as predictor: ...``
    """

    def __init__(self, predictor: TritonPredictor) -> None:
        self._predictor = predictor
        self.info = predictor.info

    @classmethod
    async def connect(cls, url: str, **options: Any) -> Self:
        """Connect without holding up the loop; ``options`` are those of TritonPredictor."""
        return cls(await asyncio.to_thread(TritonPredictor, url, **options))

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self.info.window

    async def predict(self, windows_NCHW: UInt16Array) -> Answer:
        """Classify windows of shape (N, bands, window, window).

        Raises as TritonPredictor does; then, and where it is cancelled, no request is under way
        any more.
        """
        with self._predictor.question(windows_NCHW) as question:
            parts = [asyncio.wrap_future(replies) for _, replies in question.parts]
            for part in parts:
                # the question says what failed: asyncio need not tell of it as well
                part.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            try:
                await _ended(parts)
            finally:
                question.give_up()
                await _ended(parts)
            return Answer.joined(len(windows_NCHW), self.window, question.replies())

    async def close(self) -> None:
        """Wait for what is in flight, let go of shared memory and connections."""
        await asyncio.to_thread(self._predictor.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


async def _ended(parts: Sequence[asyncio.Future[list[Reply]]]) -> None:
    if parts:
        await asyncio.wait(parts)
