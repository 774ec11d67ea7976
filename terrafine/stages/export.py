"""export: a promoted model -> the ONNX graph that serves, checked on real windows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from terrafine.accuracy import GateDecision
from terrafine.errors import StageError
from terrafine.export import export_model, load_bundle
from terrafine.geometry import Window
from terrafine.progress import progress
from terrafine.raster import Mosaic, open_mosaics
from terrafine.spec import MapSpec
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, file_digest, read_json
from terrafine.stages.label import scene_files


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    decision = read_json(job.output(needed["gate"], "decision"), TypeAdapter(GateDecision))
    if not decision.passed:
        raise StageError(
            f"the gate refused this model ({job.output(needed['gate'], 'verdict')}); "
            "only a model that passed is exported: change the training or the gate's rules"
        )
    model, info = load_bundle(
        job.output(needed["train"], "model"), legend=job.spec.resolve_legend()
    )
    if info.digest != needed["gate"].metrics["model"]:
        raise StageError(
            f"{job.output(needed['train'], 'model')}: not the model that the gate judged "
            f"(trained again or exchanged since); delete {job.workdir / 'assess'} and "
            f"{job.workdir / 'gate'} and run again, so that this one is judged"
        )
    windows = real_windows(job.spec, list(open_mosaics(job.spec.imagery, job.data).values()))
    with progress("export", total=1, unit="graph") as task:
        parity = export_model(
            model,
            info,
            folder / "model.onnx",
            windows,
            window=job.spec.map.window,
            spec=job.spec.export,
        )
        task.advance(agreement=parity.class_agreement)
    (folder / "parity.json").write_text(json.dumps(asdict(parity), indent=1))
    return Outcome(
        {"graph": Path("model.onnx"), "parity": Path("parity.json")},
        {
            "model": info.digest,
            "graph": file_digest(folder / "model.onnx"),
            "class_agreement": round(parity.class_agreement, 6),
            "max_probability_error": round(parity.max_probability_error, 6),
            "windows": parity.windows,
        },
    )


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
    needs=("train", "gate"),
    sections=("imagery", "map", "export"),
    files=scene_files,
    work=_work,
)
