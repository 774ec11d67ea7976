"""export: a promoted model -> the release that serves, checked on real windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from terrafine.accuracy import GateDecision
from terrafine.errors import StageError
from terrafine.export import Release, load_bundle, write_release
from terrafine.geometry import Window
from terrafine.progress import progress, warn
from terrafine.raster import Mosaic, UInt16Array, open_mosaics
from terrafine.spec import MapSpec
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, read_json
from terrafine.stages.label import scene_files

RELEASE = "release"


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    file = job.output(needed["gate"], "decision")
    decision = read_json(file, TypeAdapter(GateDecision))
    if (needed["gate"].metrics["decision"] == "promote") != decision.passed:
        raise StageError(
            f"{file}: says the opposite of what the gate decided "
            f"({needed['gate'].metrics['decision']}), it was edited since; delete "
            f"{job.workdir / 'gate'} and run `terrafine gate SPEC` again"
        )
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


def real_windows(spec: MapSpec, mosaics: list[Mosaic]) -> UInt16Array:
    """(N, bands, window, window) of the imagery, spread evenly over every zone.

    Each zone is cut from north to south into as many parts as windows are wanted of it, and they
    are drawn at random, but always the same, from the parts in turn. Windows that hold no pixel are
    passed over; StageError when all do.
    """
    wanted = spec.export.parity_windows
    share = -(-wanted // len(mosaics))
    drawn: dict[tuple[int, int], Iterator[UInt16Array]] = {}
    for zone, mosaic in enumerate(mosaics):
        cores = [core for core in mosaic.window.tiles(spec.map.core) if mosaic.touches(core)]
        for part in range(share):
            some = slice(part * len(cores) // share, (part + 1) * len(cores) // share)
            drawn[part, zone] = _drawn(mosaic, cores[some], spec.map.halo, (part, zone))
    found = list(islice(_in_turn(dict(sorted(drawn.items()))), wanted))
    if not found:
        raise StageError(
            "no window of the imagery holds a valid pixel, so torch and ONNX cannot be compared; "
            "check imagery.nodata"
        )
    # zone by zone: int8 is calibrated on every other one, and judged on the others
    found.sort(key=lambda one: one[0][::-1])
    return np.stack([image_CHW for _, image_CHW in found])


def _drawn(
    mosaic: Mosaic, cores: list[Window], halo: int, seed: tuple[int, int]
) -> Iterator[UInt16Array]:
    """The windows around ``cores`` that hold a pixel, in the random order of ``seed``."""
    for place in np.random.default_rng(seed).permutation(len(cores)):
        image_CHW, source_HW = mosaic.read(cores[place].buffered(halo))
        if source_HW.any():
            yield image_CHW


def _in_turn(
    drawn: dict[tuple[int, int], Iterator[UInt16Array]],
) -> Iterator[tuple[tuple[int, int], UInt16Array]]:
    """A window of each that has some left, with its key, and again until none has."""
    while drawn:
        for key, images in list(drawn.items()):
            image_CHW = next(images, None)
            if image_CHW is None:
                del drawn[key]
            else:
                yield key, image_CHW


EXPORT = Stage(
    name="export",
    needs=("prune", "gate"),
    sections=("imagery", "map", "export"),
    files=scene_files,
    work=_work,
)
