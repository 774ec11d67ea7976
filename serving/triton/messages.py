"""Windows as Triton's requests, its responses as bytes per pixel (DESIGN invariant 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from serving.triton.regions import Region
from terrafine.errors import ServingError
from terrafine.export.session import INPUT, OUTPUTS, GraphInfo, Prediction, UInt16Array
from terrafine.legend import NO_CLASS, UNWRITTEN, Legend, UInt8Array
from terrafine.telemetry import RequestRecord, VersionStatistics

# Names, shapes and versions around the pixels of a message.
_ENVELOPE = 4096
_CODES = OUTPUTS.index("other_class")


@dataclass(frozen=True)
class Answer(Prediction):
    """A prediction that says who made it.

    ``versions``, ``releases``: of each window, the model's version and the digest of its release;
    both are empty for a window without a single valid pixel, which no server was asked about.
    """

    versions: tuple[str, ...]
    releases: tuple[str, ...]

    @classmethod
    def joined(
        cls, count: int, window: int, replies: Sequence[tuple[slice, Sequence[Reply]]]
    ) -> Answer:
        """The answer for ``count`` windows; those that no reply covers have no valid pixel.

        ``replies``: neighbouring windows, and the replies that cover them one after the other.
        """
        enhanced, other_class, other = np.zeros((3, count, window, window), np.uint8)
        versions, releases = [""] * count, [""] * count
        for windows, several in replies:
            first = windows.start
            for reply in several:
                size = len(reply.arrays[0])
                part = slice(first, first + size)
                for array_NHW, said_NHW in zip(
                    (enhanced, other_class, other), reply.arrays, strict=True
                ):
                    array_NHW[part] = said_NHW
                versions[part], releases[part] = [reply.version] * size, [reply.release] * size
                first += size
        return cls(enhanced, other_class, other, tuple(versions), tuple(releases))


@dataclass(frozen=True)
class Reply:
    """A server's reply to one request: an array for each of OUTPUTS, and what there is to count."""

    arrays: tuple[UInt8Array, ...]
    version: str
    release: str
    shared_memory: bool
    sent: int
    received: int

    def record(self, model: str, *, seconds: float, tries: int) -> RequestRecord:
        """What an observer is told."""
        return RequestRecord(
            model=model,
            version=self.version,
            shared_memory=self.shared_memory,
            windows=len(self.arrays[0]),
            pixels=self.arrays[0].size,
            seconds=seconds,
            sent=self.sent,
            received=self.received,
            tries=tries,
        )


def runs(wanted_N: npt.NDArray[np.bool_], most: int) -> list[slice]:
    """Neighbours among the wanted windows, at most ``most`` together."""
    edges = np.flatnonzero(np.diff(wanted_N, prepend=False, append=False)).tolist()
    return [
        slice(first, min(first + most, stop))
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
        for first in range(start, stop, most)
    ]


def largest_batch(graph: GraphInfo, most: int, max_message: int, url: str) -> int:
    """Windows per request: at most ``most``, and what a message and its answer hold."""
    window = max(2 * graph.bands, len(OUTPUTS)) * graph.window**2
    fitting = (max_message - _ENVELOPE) // window
    if fitting < 1:
        raise ServingError(
            f"{url}: one window has {window} bytes, a message may have {max_message}; allow "
            "larger messages, or export the model with a smaller window"
        )
    return min(most, fitting)


def too_large(batch_NCHW: UInt16Array, size: int, said: str, *, where: str) -> ServingError:
    """What to say of a request of ``size`` bytes whose message, or answer, was let through by
    nobody; ``said``: gRPC's words, which name the limit."""
    back = len(OUTPUTS) * _pixels(batch_NCHW)
    fewer = (
        "ask for fewer windows at once (max_message, max_batch)"
        if len(batch_NCHW) > 1
        else "export the model with a smaller window"
    )
    return ServingError(
        f"{where}: a request of {size} bytes ({len(batch_NCHW)} windows), whose answer has {back}, "
        f"is larger than the server, or a proxy before it, lets through ({said}); allow larger "
        f"messages there, or {fewer}"
    )


def region_bytes(batch_NCHW: UInt16Array) -> int:
    """Bytes of shared memory that a batch and its answer need."""
    return batch_NCHW.nbytes + len(OUTPUTS) * _pixels(batch_NCHW)


def build_request(model: str, version: str, batch_NCHW: UInt16Array, region: Region | None) -> Any:
    """A ModelInferRequest: the pixels inside it, or in ``region`` with room for the answer."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    image = request.inputs.add(name=INPUT, datatype="UINT16", shape=batch_NCHW.shape)
    outputs = [request.outputs.add(name=name) for name in OUTPUTS]
    if region is None:
        request.raw_input_contents.append(batch_NCHW.tobytes())
        return request
    region.array(batch_NCHW.shape, np.uint16, 0)[...] = batch_NCHW
    _place(image, region, 0, batch_NCHW.nbytes)
    for output, (offset, size) in zip(outputs, _room(batch_NCHW), strict=True):
        _place(output, region, offset, size)
    # what the server leaves unwritten is no class, and will be noticed
    region.array((_pixels(batch_NCHW),), np.uint8, _room(batch_NCHW)[_CODES][0])[:] = UNWRITTEN
    return request


def read_response(
    response: Any, batch_NCHW: UInt16Array, region: Region | None, legend: Legend, *, where: str
) -> tuple[UInt8Array, ...]:
    """The arrays of OUTPUTS, (N, H, W) uint8 each; ServingError when it is anything else."""
    expected = (len(batch_NCHW), *batch_NCHW.shape[2:])
    given = {output.name: i for i, output in enumerate(response.outputs)}
    arrays = []
    for name, (offset, _) in zip(OUTPUTS, _room(batch_NCHW), strict=True):
        output = response.outputs[given[name]] if name in given else None
        if output is None or output.datatype != "UINT8" or tuple(output.shape) != expected:
            said = "nothing" if output is None else f"{output.datatype} {tuple(output.shape)}"
            raise ServingError(
                f"{where}: answered {said} for {name}, not UINT8 {expected}; deploy the model anew"
            )
        if region is not None:
            arrays.append(region.array(expected, np.uint8, offset).copy())
        else:
            raw = response.raw_output_contents[given[name]]
            arrays.append(np.frombuffer(raw, np.uint8).reshape(expected))
    _require_codes(arrays[_CODES], legend, where=where)
    return tuple(arrays)


def read_statistics(response: Any, *, server: str) -> list[VersionStatistics]:
    """A ModelStatisticsResponse, version by version."""
    return [
        VersionStatistics(
            server=server,
            model=found.name,
            version=found.version,
            requests=found.inference_stats.success.count,
            failures=found.inference_stats.fail.count,
            windows=found.inference_count,
            executions=found.execution_count,
            seconds=found.inference_stats.success.ns / 1e9,
            queue_seconds=found.inference_stats.queue.ns / 1e9,
            compute_seconds=found.inference_stats.compute_infer.ns / 1e9,
        )
        for found in response.model_stats
    ]


def _pixels(batch_NCHW: UInt16Array) -> int:
    return int(batch_NCHW[:, 0].size)


def _room(batch_NCHW: UInt16Array) -> list[tuple[int, int]]:
    """First byte and number of bytes of each output in a region, behind the input."""
    size = _pixels(batch_NCHW)
    return [(batch_NCHW.nbytes + i * size, size) for i in range(len(OUTPUTS))]


def _place(tensor: Any, region: Region, offset: int, size: int) -> None:
    tensor.parameters["shared_memory_region"].string_param = region.name
    tensor.parameters["shared_memory_offset"].int64_param = offset
    tensor.parameters["shared_memory_byte_size"].int64_param = size


def _require_codes(codes_NHW: UInt8Array, legend: Legend, *, where: str) -> None:
    """Codes that mean nothing are a wrong model, or memory that was never written."""
    meant = np.zeros(256, bool)
    meant[[NO_CLASS, *legend.codes]] = True
    if not meant[codes_NHW].all():
        wrong = np.setdiff1d(codes_NHW, [NO_CLASS, *legend.codes])
        raise ServingError(
            f"{where}: answered code {wrong[0]}, which legend {legend.name!r} does not have; "
            "deploy the model anew"
        )
