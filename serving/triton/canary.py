"""Whether a served version says of a release's windows what was recorded at export."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from serving.triton.config import parameter
from serving.triton.endpoint import BusyError, Endpoint
from serving.triton.repository import Version
from terrafine.errors import ServingError
from terrafine.export import Prediction
from terrafine.export.parity import compare
from terrafine.legend import UInt8Array


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


def ask_version(server: Endpoint, name: str, version: Version) -> Canary:
    """Ask a version about the windows of its release, one by one as they were recorded."""
    started = time.monotonic()
    try:
        found = [_bytes(server.ask(name, version.number, w)) for w in version.windows_NCHW]
    except BusyError as error:
        return Canary(verdict="busy", reason=str(error))
    except ServingError as error:
        return Canary(verdict="silent", reason=str(error))
    enhanced, code, other = _bytes(version.answers)
    pairs = [
        ((enhanced[i : i + 1], code[i : i + 1], other[i : i + 1]), said)
        for i, said in enumerate(found)
    ]
    report = compare(pairs, version.info.legend)
    exact = all(
        np.array_equal(wanted, got) for pair in pairs for wanted, got in zip(*pair, strict=True)
    )
    least, most = (
        float(parameter(version.config, f"canary_{key}", where=name))
        for key in ("class_agreement", "probability_error")
    )
    passed = exact or (report.class_agreement >= least and report.max_probability_error <= most)
    return Canary(
        verdict="passed" if passed else "differs",
        exact=exact,
        class_agreement=report.class_agreement,
        max_probability_error=report.max_probability_error,
        seconds=time.monotonic() - started,
        reason=""
        if passed
        else f"its classes agree with the recorded ones on {report.class_agreement:.6f} of "
        f"the pixels ({least} wanted), its probabilities within "
        f"{report.max_probability_error:.4f} ({most} wanted); look for another engine, "
        "precision or graph than at export, or lower serve.canary_class_agreement",
    )


def _bytes(said: Prediction) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    return said.enhanced_NHW, said.other_class_NHW, said.other_NHW
