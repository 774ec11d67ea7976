"""export: a promoted model -> the release that serves, checked on real windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from terrafine.accuracy import GateDecision
from terrafine.errors import StageError
from terrafine.export import Release, load_bundle, write_release
from terrafine.geometry import Window
from terrafine.progress import progress, warn
from terrafine.raster import Mosaic, open_mosaics
from terrafine.spec import MapSpec
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, read_json
from terrafine.stages.label import scene_files

RELEASE = "release"


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    decision = read_json(job.output(needed["gate"], "decision"), TypeAdapter(GateDecision))
    if not decision.passed:
        raise StageError(
            f"the gate refused this model ({job.output(needed['gate'], 'verdict')}); "
            "only a model that passed is exported: change the training or the gate's rules"
        )
    model, info = load_bundle(
        job.output(needed["prune"], "model"), legend=job.spec.resolve_legend()
    )
    if info.digest != needed["gate"].metrics["model"]:
        raise StageError(
            f"{job.output(needed['prune'], 'model')}: not the model that the gate judged "
            f"(trained again or exchanged since); delete {job.workdir / 'assess'} and "
            f"{job.workdir / 'gate'} and run again, so that this one is judged"
        )
    windows = real_windows(job.spec, list(open_mosaics(job.spec.imagery, job.data).values()))
    with progress("export", total=1, unit="release") as task:
        release = write_release(
            folder / RELEASE,
            model,
            info,
            windows,
            name=job.spec.name,
            gate=decision,
            window=job.spec.map.window,
            spec=job.spec.export,
        )
        exact = release.info.graphs["fp32"]
        task.advance(agreement=exact.parity.class_agreement)
    for variant, why in release.info.refused.items():
        warn(f"{variant}: {why}")
    return Outcome(
        {"graph": Path(RELEASE, exact.file), "release": Path(RELEASE)},
        {
            "model": info.digest,
            "release": release.digest,
            "graph": exact.sha256,
            **_agreements(release),
            "max_probability_error": round(exact.parity.max_probability_error, 6),
            "windows": exact.parity.windows,
        },
    )


def _agreements(release: Release) -> dict[str, float]:
    """Under the graph's plain name for fp32, which the map is made with."""
    return {
        "class_agreement" + ("" if variant == "fp32" else f"_{variant}"): round(
            entry.parity.class_agreement, 6
        )
        for variant, entry in release.info.graphs.items()
    }


def real_windows(spec: MapSpec, mosaics: list[Mosaic]) -> npt.NDArray[np.uint16]:
    """(N, bands, window, window) of the imagery, spread evenly over every zone.

    Windows that hold no pixel are passed over; StageError when all do.
    """
    wanted = spec.export.parity_windows
    found: list[npt.NDArray[np.uint16]] = []
    for mosaic in mosaics:
        cores: list[Window] = [c for c in mosaic.window.tiles(spec.map.core) if mosaic.touches(c)]
        share = -(-wanted // len(mosaics))
        taken = 0
        for core in cores[:: max(1, len(cores) // (2 * share))]:
            image_CHW, source_HW = mosaic.read(core.buffered(spec.map.halo))
            if taken < share and source_HW.any():
                found.append(image_CHW)
                taken += 1
    if not found:
        raise StageError(
            "no window of the imagery holds a valid pixel, so torch and ONNX cannot be compared; "
            "check imagery.nodata"
        )
    return np.stack(found[:wanted])


EXPORT = Stage(
    name="export",
    needs=("prune", "gate"),
    sections=("imagery", "map", "export"),
    files=scene_files,
    work=_work,
)
