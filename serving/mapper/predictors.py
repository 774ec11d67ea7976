"""The predictor that a spec asks for, opened anew in every worker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from terrafine.export import Release
from terrafine.mapping import Predictor, local_predictor
from terrafine.spec import MapSpec


def predictor_for(spec: MapSpec, release: Release, bundle: Path) -> Callable[[], Predictor]:
    """How a worker opens the model of ``release``; the function it gives can be pickled.

    Of model servers only the release itself is asked, by its digest.
    """
    if spec.map.predictor != "triton":
        return local_predictor(spec, release, bundle)
    # grpc takes a moment to import, which other commands need not wait for
    from serving.triton.client import TritonPredictor

    assert spec.map.server is not None, "checked by the spec"
    return partial(
        TritonPredictor, spec.map.server, model=spec.serve.name, release=release.digest,
        deadline=600.0,
    )  # fmt: skip
