"""Whether a served version says of a release's windows what was recorded at export."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from serving.triton.config import graph_of, parameter
from serving.triton.endpoint import BusyError, Endpoint
from serving.triton.messages import largest_batch
from serving.triton.replicas import MAX_MESSAGE
from serving.triton.repository import Version
from terrafine.errors import ServingError
from terrafine.export import Prediction
from terrafine.export.parity import compare
from terrafine.legend import UInt8Array

IntArray = npt.NDArray[np.intp]
Bytes = tuple[UInt8Array, UInt8Array, UInt8Array]


class Canary(BaseModel):
    """How a served version's answers compare with those recorded at export.

    ``verdict``: "passed"; "differs" where they are not near enough; "silent" where the version did
    not answer; "busy" where its queue let nobody in; "other" where clients who name no version get
    another one. ``exact``: every byte is the same; ``reason``: of a verdict other than "passed".
    """

    model_config = ConfigDict(frozen=True)

    verdict: Literal["passed", "differs", "silent", "busy", "other"]
    exact: bool = False
    class_agreement: float = 0.0
    max_probability_error: float = 1.0
    seconds: float = 0.0
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it says what it should."""
        return self.verdict == "passed"


def ask_champion(server: Endpoint, name: str, version: Version) -> Canary:
    """Whether those who name no version get this one, and whether it says what it should."""
    try:
        states = server.versions(name)
    except ServingError as error:
        return Canary(verdict="silent", reason=str(error))
    highest = max((n for n, state in states.items() if state == "READY"), default=0)
    if highest > version.number:
        return Canary(
            verdict="other",
            reason=f"grpc://{server.address}: gives version {highest} of {name}, not "
            f"{version.number}; `terrafine watch` loads that",
        )
    return ask_version(server, name, version)


def ask_version(server: Endpoint, name: str, version: Version, *, batch: int = 1) -> Canary:
    """Ask a version about the windows of its release, one by one as they were recorded.

    ``batch``: the most windows that the server runs at once; where it is more than one, so many are
    sent as one request too, each of the release's windows several times, and each answer has to be
    what was recorded: a server puts requests together, and clients are to notice nothing of it.
    """
    started = time.monotonic()
    count = len(version.windows_NCHW)
    try:
        found = _compared(server, name, version, np.arange(count), at_once=1)
        if found.passed and batch > 1:
            together = _compared(server, name, version, _mixed(count, batch), at_once=batch)
            found = together.model_copy(
                update={
                    "exact": found.exact and together.exact,
                    "class_agreement": min(found.class_agreement, together.class_agreement),
                    "max_probability_error": max(
                        found.max_probability_error, together.max_probability_error
                    ),
                }
            )
    except BusyError as error:
        return Canary(verdict="busy", reason=str(error))
    except ServingError as error:
        return Canary(verdict="silent", reason=str(error))
    return found.model_copy(update={"seconds": time.monotonic() - started})


def full_batch(version: Version) -> int:
    """Windows that a server runs at once which serves a version, as many as a message holds."""
    graph = graph_of(version.config, version.number, where=f"version {version.number}")
    return largest_batch(graph, version.config.max_batch_size, MAX_MESSAGE, version.config.name)


def _compared(
    server: Endpoint, name: str, version: Version, order_N: IntArray, *, at_once: int
) -> Canary:
    """What a version says of its release's windows in this order against what was recorded."""
    recorded = _bytes(version.answers)
    pairs = []
    for first in range(0, len(order_N), at_once):
        asked_N = order_N[first : first + at_once]
        said = server.ask(name, version.number, version.windows_NCHW[asked_N])
        pairs.append((_of(recorded, asked_N), _bytes(said)))
    report = compare(pairs, version.info.legend)
    exact = all(
        np.array_equal(wanted, got) for pair in pairs for wanted, got in zip(*pair, strict=True)
    )
    least, most = (
        float(parameter(version.config, f"canary_{key}", where=name))
        for key in ("class_agreement", "probability_error")
    )
    passed = exact or (report.class_agreement >= least and report.max_probability_error <= most)
    sent = f"asked about {at_once} windows at once, " if at_once > 1 else ""
    return Canary(
        verdict="passed" if passed else "differs",
        exact=exact,
        class_agreement=report.class_agreement,
        max_probability_error=report.max_probability_error,
        reason=""
        if passed
        else f"{sent}its classes agree with the recorded ones on {report.class_agreement:.6f} of "
        f"the pixels ({least} wanted), its probabilities within "
        f"{report.max_probability_error:.4f} ({most} wanted); look for another engine, "
        "precision or graph than at export, or lower serve.canary_class_agreement",
    )


def _mixed(count: int, batch: int) -> IntArray:
    """Which of ``count`` windows lies at each place of a batch: without a period, so that answers
    given to the wrong window are noticed."""
    return np.random.default_rng(0).permutation(np.arange(batch) % count)


def _of(arrays: Bytes, windows_N: IntArray) -> Bytes:
    enhanced, code, other = arrays
    return enhanced[windows_N], code[windows_N], other[windows_N]


def _bytes(said: Prediction) -> Bytes:
    return said.enhanced_NHW, said.other_class_NHW, said.other_NHW
