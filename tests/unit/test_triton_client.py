"""What the Triton client decides by itself: addresses, turns, batches, and what it believes."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from serving.triton.contract import difference, fetch_contract, read_contract
from serving.triton.messages import (
    Answer,
    Reply,
    build_request,
    largest_batch,
    read_response,
    runs,
)
from serving.triton.regions import Regions
from serving.triton.replicas import Replica, Replicas, cause_of, gave_up, parse_url
from terrafine.errors import ServingError
from terrafine.export import INPUT, OUTPUTS, GraphInfo
from terrafine.legend import FBP, SEVEN

GRAPH = GraphInfo(
    window=16,
    band_names=("red", "green", "blue", "nir"),
    scale=1.0,
    fill=0,
    legend=SEVEN,
    model="m",
    weights_sha256="w",
)
WINDOWS = np.ones((2, 4, 16, 16), np.uint16)


def test_addresses() -> None:
    assert parse_url("grpc://localhost:8001") == ("localhost:8001",)
    assert parse_url("grpc://a.b-c:1,[::1]:8001/") == ("a.b-c:1", "[::1]:8001")


@pytest.mark.parametrize(
    "url",
    ["localhost:8001", "http://a:1", "grpc://", "grpc://a", "grpc://a:0", "grpc://a:1,", "grpc://a:x",
     "grpc://a:99999", "grpc://a b:1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ServingError, match="is no address of a Triton server; write grpc://host"):
        parse_url(url)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_replicas_take_turns_and_one_that_fails_rests_longer_each_time() -> None:
    clock = Clock()
    replicas = Replicas(("a:1", "b:1", "c:1"), clock=clock, chance=lambda: 0.5)
    a, b, c = replicas.all
    assert [replicas.pick()[0] for _ in range(4)] == [a, b, c, a]
    replicas.failed(b)
    replicas.failed(b)  # a request that went side by side with the first: counts once
    assert [replicas.pick() for _ in range(3)] == [(c, 0), (a, 0), (c, 0)]
    clock.now += 0.051
    assert b in {replicas.pick()[0] for _ in range(3)}
    rests = []
    for _ in range(8):
        replicas.failed(b)
        rests.append(b.rests_until - clock.now)
        clock.now = b.rests_until
    assert rests == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2])
    replicas.answered(b)
    replicas.failed(b)
    assert b.rests_until - clock.now == pytest.approx(0.05)
    replicas.close()


def test_when_all_rest_the_one_that_is_ready_first_is_waited_for() -> None:
    clock = Clock()
    replicas = Replicas(("a:1", "b:1"), clock=clock, chance=lambda: 0.5)
    a, b = replicas.all
    replicas.failed(a)
    clock.now += 0.03
    replicas.failed(b)
    chosen, wait = replicas.pick()
    assert chosen is a
    assert wait == pytest.approx(0.02)
    replicas.close()


def test_the_replica_that_just_failed_is_asked_again_only_where_no_other_is_well() -> None:
    clock = Clock()
    replicas = Replicas(("a:1", "b:1"), clock=clock, chance=lambda: 0.5)
    a, b = replicas.all
    # it has hung, and its rest is over when the request that it cost its time comes back
    assert [replicas.pick(but=b)[0] for _ in range(2)] == [a, a]
    replicas.failed(a)
    assert replicas.pick(but=b) == (b, 0)
    replicas.close()


class Refused(grpc.RpcError):
    """What a call that a server refuses raises."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = lambda: code, lambda: details


@pytest.mark.parametrize(
    ("code", "details", "cause", "still_at_work"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", "unavailable", True),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", "queue_timeout", False),
        (grpc.StatusCode.UNKNOWN, "http2 header with status: 413", "resource_exhausted", False),
    ],
)
def test_a_server_that_has_refused_is_at_work_no_more(
    code: grpc.StatusCode, details: str, cause: str, still_at_work: bool
) -> None:
    error = Refused(code, details)
    assert cause_of(error) == cause
    assert gave_up(error) == still_at_work


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_batches_hold_every_wanted_window_once_and_no_other(wanted: list[bool], most: int) -> None:
    found = runs(np.array(wanted, bool), most)
    covered = [i for part in found for i in range(part.start, part.stop)]
    assert covered == [i for i, is_wanted in enumerate(wanted) if is_wanted]
    assert all(part.stop - part.start <= most for part in found)


def test_a_batch_is_no_larger_than_a_message() -> None:
    window = WINDOWS[0].nbytes
    assert largest_batch(GRAPH, 8, 3 * window + 5000, "grpc://a:1") == 3
    assert largest_batch(GRAPH, 2, 2**31, "grpc://a:1") == 2
    with pytest.raises(ServingError, match=f"one window has {window} bytes, a message may have 9"):
        largest_batch(GRAPH, 2, 9, "grpc://a:1")
    # of a single band the answer is larger than what was asked
    one_band = replace(GRAPH, band_names=("red",))
    assert largest_batch(one_band, 8, 4 * 3 * 16**2 + 4096, "grpc://a:1") == 4


def test_a_request_names_the_version_and_holds_the_raw_numbers() -> None:
    request = build_request("landcover", "7", WINDOWS, None)
    assert (request.model_name, request.model_version) == ("landcover", "7")
    assert request.inputs[0].name == INPUT
    assert list(request.inputs[0].shape) == [2, 4, 16, 16]
    assert request.raw_input_contents[0] == WINDOWS.tobytes()
    assert [output.name for output in request.outputs] == list(OUTPUTS)


def response(**changes: np.ndarray) -> service_pb2.ModelInferResponse:
    """A server's answer of all cropland, in another order than it was asked for."""
    arrays = {name: np.ones((2, 16, 16), np.uint8) for name in reversed(OUTPUTS)} | changes
    made = service_pb2.ModelInferResponse(model_version="1")
    for name, array in arrays.items():
        datatype = array.dtype.name.upper()
        made.outputs.add(name=name, datatype=datatype, shape=array.shape)
        made.raw_output_contents.append(array.tobytes())
    return made


def test_answers_are_told_apart_by_their_names() -> None:
    said = response(other_probability=np.full((2, 16, 16), 200, np.uint8))
    arrays = read_response(said, WINDOWS, None, SEVEN, where="a")
    assert [int(array.max()) for array in arrays] == [1, 1, 200]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"other_class": np.full((2, 16, 16), 99, np.uint8)}, "answered code 99, which legend"),
        (
            {"other_class": np.ones((1, 16, 16), np.uint8)},
            r"answered UINT8 \(1, 16, 16\) for other",
        ),
        ({"other_class": np.ones((2, 16, 16), np.uint16)}, r"answered UINT16"),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(
    changes: dict[str, np.ndarray], reason: str
) -> None:
    with pytest.raises(ServingError, match=reason):
        read_response(response(**changes), WINDOWS, None, SEVEN, where="a")
    nothing = service_pb2.ModelInferResponse(model_version="1")
    with pytest.raises(ServingError, match="answered nothing for enhanced_probability"):
        read_response(nothing, WINDOWS, None, SEVEN, where="a")


def test_windows_that_nobody_was_asked_about_have_no_class() -> None:
    answer = Answer.joined(3, 16, [])
    assert not answer.other_class_NHW.any()
    assert answer.versions == answer.releases == ("", "", "")


def test_a_batch_that_was_answered_in_parts_is_put_together_in_order() -> None:
    def reply(count: int, code: int, version: str) -> Reply:
        said = tuple(np.full((count, 16, 16), code, np.uint8) for _ in OUTPUTS)
        return Reply(said, version, f"r{version}", shared_memory=False, sent=0, received=0)

    parts = [reply(2, 7, "1"), reply(1, 8, "2")]
    answer = Answer.joined(6, 16, [(slice(1, 4), parts), (slice(5, 6), [reply(1, 9, "2")])])
    assert answer.versions == ("", "1", "1", "2", "", "2")
    assert answer.releases == ("", "r1", "r1", "r2", "", "r2")
    assert answer.other_class_NHW[:, 0, 0].tolist() == [0, 7, 7, 8, 0, 9]


class Deaf:
    """A region whose server does not listen, until it is ``heard``."""

    def __init__(self) -> None:
        self.heard = threading.Event()
        self.told = False

    def unregister(self) -> None:
        assert self.heard.wait(60)
        self.told = True


def test_a_request_does_not_wait_for_a_server_that_forgets_memory_slowly() -> None:
    regions, late = Regions(True, grace=0), Deaf()
    regions.give(late, doubtful=True)  # type: ignore[arg-type]
    assert not late.told
    late.heard.set()
    regions.close()
    assert late.told


def config(**parameters: str) -> model_config_pb2.ModelConfig:
    made = model_config_pb2.ModelConfig(name="landcover", max_batch_size=8)
    for key, value in parameters.items():
        made.parameters[key.replace("_", ".")].string_value = value
    return made


def metadata(*versions: str, window: int = 16) -> service_pb2.ModelMetadataResponse:
    made = service_pb2.ModelMetadataResponse(name="landcover", versions=versions)
    made.inputs.add(name=INPUT, datatype="UINT16", shape=[-1, 4, window, window])
    for name in OUTPUTS:
        made.outputs.add(name=name, datatype="UINT8", shape=[-1, window, window])
    return made


SAID = json.dumps(GRAPH.to_metadata())


def test_a_contract_says_which_release_each_version_is_and_which_of_them_answer() -> None:
    said = config(release_2="aa", release_10="aa", release_3="bb", graph_2=SAID, graph_10=SAID,
                  graph_3=SAID, variant="fp32")  # fmt: skip
    contract = read_contract(metadata("2", "10"), said, where="here")
    assert (contract.newest, contract.max_batch) == ("10", 8)
    assert contract.version_of("aa") == "10"
    assert contract.version_of("bb") is None  # known, but not loaded
    assert contract.graphs["2"] == GRAPH


def test_of_a_release_that_is_served_twice_the_version_kept_to_is_asked_or_one_run_alike() -> None:
    said = config(release_1="aa", release_2="aa", release_3="aa", engine_1="fp32", engine_2="int8",
                  engine_3="fp32", graph_1=SAID, graph_2=SAID, graph_3=SAID)  # fmt: skip
    contract = read_contract(metadata("1", "2", "3"), said, where="here")
    assert contract.version_of("aa", engine="fp32", kept="1") == "1"
    assert contract.version_of("aa", engine="fp32", kept="2") == "3"
    assert contract.version_of("aa", engine="int8") == "2"
    assert contract.version_of("aa", engine="fp16") is None
    assert (
        contract.served == "aa (fp32) as version 1, aa (int8) as version 2, aa (fp32) as version 3"
    )
    unsaid = read_contract(metadata("1"), config(release_1="aa", graph_1=SAID), where="here")
    assert unsaid.version_of("aa") == "1"
    assert unsaid.version_of("aa", engine="fp32") is None


class SlowStub:
    """A server that takes a while to say what its model takes; it keeps what time it is given."""

    def __init__(self) -> None:
        self.given: list[float] = []

    def ModelMetadata(self, _: object, timeout: float) -> service_pb2.ModelMetadataResponse:
        self.given.append(timeout)
        time.sleep(0.2)
        return metadata("1")

    def ModelConfig(self, _: object, timeout: float) -> service_pb2.ModelConfigResponse:
        self.given.append(timeout)
        return service_pb2.ModelConfigResponse(config=config(release_1="aa", graph_1=SAID))


def test_two_questions_about_a_contract_share_the_time_that_is_left() -> None:
    replica = Replica("127.0.0.1:9")
    replica.stub = slow = SlowStub()
    fetch_contract(replica, "landcover", stop=time.monotonic() + 5, most=10)
    first, second = slow.given
    assert second <= first - 0.2
    slow.given.clear()
    fetch_contract(replica, "landcover", stop=time.monotonic() + 500, most=10)
    assert slow.given == [10, 10]
    replica.close()


class ChangingStub:
    """A server on which version 2 takes the place of another model between two questions."""

    def __init__(self, before: service_pb2.ModelMetadataResponse) -> None:
        self._next = before

    def ModelMetadata(self, _: object, timeout: float) -> service_pb2.ModelMetadataResponse:
        said, self._next = self._next, metadata("2")
        return said

    def ModelConfig(self, _: object, timeout: float) -> service_pb2.ModelConfigResponse:
        return service_pb2.ModelConfigResponse(config=config(release_2="bb", graph_2=SAID))


@pytest.mark.parametrize(
    "before", [metadata("1"), metadata("1", "2", window=32)], ids=["other version", "other window"]
)
def test_a_promotion_between_two_questions_is_no_foreign_model(
    before: service_pb2.ModelMetadataResponse,
) -> None:
    replica = Replica("127.0.0.1:9")
    replica.stub = ChangingStub(before)
    contract = fetch_contract(replica, "landcover", stop=time.monotonic() + 60, most=10)
    assert contract.ready == {"2"}
    replica.close()


@pytest.mark.parametrize(
    ("said", "window", "reason"),
    [
        (config(), 16, "does not say which releases"),
        (config(release_1="aa"), 16, "does not say which releases"),
        (config(release_1="aa", graph_1="{"), 16, "its configuration is damaged"),
        (config(release_1="aa", graph_1="[1]"), 16, "its configuration is damaged"),
        (config(release_1="aa", graph_1=SAID), 32, "takes .*32.* but its graph .*16"),
    ],
)
def test_a_model_that_was_not_deployed_by_terrafine_is_refused(
    said: model_config_pb2.ModelConfig, window: int, reason: str
) -> None:
    with pytest.raises(ServingError, match=reason):
        read_contract(metadata("1", window=window), said, where="here")


def test_another_legend_fill_or_window_is_another_model() -> None:
    assert difference(GRAPH, replace(GRAPH, model="trained anew")) is None
    assert "fill 9, not 0" in str(difference(GRAPH, replace(GRAPH, fill=9)))
    assert "window 32, not 16" in str(difference(GRAPH, replace(GRAPH, window=32)))
    assert "scale 10.0, not 1.0" in str(difference(GRAPH, replace(GRAPH, scale=10.0)))
    turned = replace(GRAPH, band_names=("blue", "green", "red", "nir"))
    assert "('blue', 'green', 'red', 'nir'), not ('red'" in str(difference(GRAPH, turned))
    assert "legend" in str(difference(GRAPH, replace(GRAPH, legend=FBP)))
