"""adopt: a released model -> the same outputs as an export's, for a map that trains nothing.

The release is copied, so that the map's model stays what it was when the champion's folder changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from terrafine.errors import StageError
from terrafine.export import Release, ReleaseInfo, fetch_release, read_release
from terrafine.spec import MapSpec
from terrafine.stages.engine import CHAMPION, Job, Manifest, Outcome, Stage, champion_place

RELEASE = "release"


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    release = fetch_release(champion_place(job), folder / RELEASE)
    _require_fit(job.spec, release.info)
    exact = release.info.graphs["fp32"]
    return Outcome(
        {"graph": Path(RELEASE, exact.file), "release": Path(RELEASE)},
        {
            "model": release.info.model,
            "release": release.digest,
            "graph": exact.sha256,
            "trained_as": release.info.name,
        },
    )


def _require_fit(spec: MapSpec, info: ReleaseInfo) -> None:
    """StageError unless the model was made for what the spec maps."""
    legend = spec.resolve_legend()
    for key, wanted, has in (
        ("imagery.bands", ", ".join(spec.imagery.bands), ", ".join(info.bands)),
        ("imagery.scale", f"{spec.imagery.scale:g}", f"{info.scale:g}"),
        ("map.core + 2 map.halo", str(spec.map.window), str(info.window)),
        ("legend", f"{legend.name} {legend.digest[:12]}", _legend(info)),
    ):
        if wanted != has:
            raise StageError(
                f"champion {spec.champion}: its model takes {key} {has}, and the spec says "
                f"{wanted}; write what the model takes into the spec, or name another model"
            )


def _legend(info: ReleaseInfo) -> str:
    return f"{info.legend.name} {info.legend.digest[:12]}"


def release_stage(spec: MapSpec) -> str:
    """The stage that leaves the model to map with."""
    return "export" if spec.champion is None else "adopt"


def made_release(job: Job, made: Manifest) -> Release:
    """The release that a stage left; StageError when another one lies in its place now."""
    folder = job.output(made, "release")
    release = read_release(folder)
    if release.digest != made.metrics["release"]:
        raise StageError(
            f"{folder}: holds release {release.digest[:12]} (run {release.info.name}), but stage "
            f"{made.stage} left {str(made.metrics['release'])[:12]}, which its gate vouches for; "
            f"delete {job.workdir / made.stage} and run `terrafine {made.stage} SPEC` again"
        )
    return release


ADOPT = Stage(
    name="adopt",
    needs=None,
    needs_with_champion=(),
    sections=("champion",),
    files=lambda spec: [CHAMPION],
    work=_work,
)
