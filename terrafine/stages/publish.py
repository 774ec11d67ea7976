"""publish: a finished map -> a release that people can open, and its report.

``refuse`` is the other end of the pipeline: the same report without a map, and the reasons.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from terrafine.accuracy import AccuracyReport
from terrafine.chips import open_chips
from terrafine.geometry import Window
from terrafine.legend import UInt8Array
from terrafine.mapping import MapStore
from terrafine.progress import progress
from terrafine.publish import item, mode_downsample, quicklook, write_overviews
from terrafine.raster import Mosaic, open_mosaics, write_geotiff
from terrafine.spec import MapSpec
from terrafine.stages.assess import report, sample_map
from terrafine.stages.engine import Job, Manifest, Outcome, Stage
from terrafine.stages.label import chips_place, scene_files
from terrafine.stages.map import STORE, map_place
from terrafine.stages.report import MapLayers, write_report

# Pixels of the longer side of a quick look's map.
_QUICKLOOK = 2048
_NEEDS = ("label", "train-preliminary", "filter", "train", "prune", "assess", "gate")


@dataclass(frozen=True)
class ZoneRelease:
    """One zone of a finished run, and the folder its release goes to."""

    job: Job
    store: MapStore
    run: str
    name: str
    mosaic: Mosaic
    folder: Path

    def read(self, window: Window, array: str = "landcover") -> UInt8Array:
        """Pixels of the run's map."""
        return self.store.read(self.mosaic.zone, window, array, ref=self.run)

    def write_geotiffs(self) -> dict[int, int]:
        """Cloud-optimised GeoTIFFs of the imagery's extent; class code -> pixels."""
        grid, window = self.mosaic.grid, self.mosaic.window
        tags = {"RELEASE": self.name, "RUN": self.run, "SPEC": self.job.spec.digest()}
        landcover_HW = self.read(window)
        for array, nodata, legend in (
            ("landcover", 255, self.store.legend),
            ("confidence", 255, None),
            ("source", 0, None),
        ):
            values = landcover_HW if array == "landcover" else self.read(window, array)
            path = self.folder / f"{array}.tif"
            write_geotiff(
                path, values, grid, window,
                nodata=nodata, legend=legend, tags=tags, description=array,
            )  # fmt: skip
        codes, counts = np.unique(landcover_HW, return_counts=True)
        return dict(zip(codes.tolist(), counts.tolist(), strict=True))

    def write_quicklook(self) -> None:
        """A picture of the map with legend, scale bar and north arrow."""
        window = self.mosaic.window
        codes_HW = self.read(window)
        while max(codes_HW.shape) > _QUICKLOOK:
            codes_HW = mode_downsample(codes_HW)
        picture = quicklook(
            codes_HW,
            grid=self.mosaic.grid,
            window=window,
            legend=self.store.legend,
            title=self.job.spec.publish.title or self.job.spec.name,
            note=self.name,
        )
        (self.folder / "quicklook.png").write_bytes(picture)

    def write_item(self, created: datetime) -> None:
        """A STAC item beside the files it names."""
        files = {
            "landcover": self.folder / "landcover.tif",
            "confidence": self.folder / "confidence.tif",
            "report": self.folder / "report.html",
            "quicklook": self.folder / "quicklook.png",
        }
        made = item(
            identifier=f"{self.name}-{self.mosaic.zone}",
            title=self.job.spec.publish.title or self.job.spec.name,
            created=created,
            grid=self.mosaic.grid,
            window=self.mosaic.window,
            legend=self.store.legend,
            files=files,
            folder=self.folder,
            provenance={"release": self.name, "run": self.run, "spec": self.job.spec.digest()},
        )
        made.save_object(include_self_link=False, dest_href=str(self.folder / "item.json"))


def _publish(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    store, run = MapStore(map_place(job)), str(needed["map"].metrics["run"])
    mosaics = open_mosaics(job.spec.imagery, job.data)
    name = job.spec.publish.release or f"{job.spec.name}-{run.removeprefix('run-')}"
    assessed = _assess_release(job, needed, store, run)
    if assessed is not None:
        (folder / "accuracy.json").write_text(assessed.model_dump_json(indent=1))
    write_overviews(store, run, workers=os.cpu_count() or 1)
    places = []
    with progress("publish", total=3 * len(mosaics), unit="step") as task:
        for zone, mosaic in mosaics.items():
            place = folder if len(mosaics) == 1 else folder / zone
            place.mkdir(exist_ok=True)
            release = ZoneRelease(job, store, run, name, mosaic, place)
            pixels = release.write_geotiffs()
            release.write_quicklook()
            task.advance()
            layers = MapLayers(release.read, pixels, name, assessed)
            write_report(job, needed, mosaic, place / "report.html", layers)
            task.advance()
            release.write_item(datetime.now(UTC))
            task.advance()
            places.append(place.relative_to(folder))
    store.release(name, run)
    return Outcome(
        {
            "report": places[0] / "report.html",
            "geotiff": places[0] / "landcover.tif",
            "quicklook": places[0] / "quicklook.png",
            "item": places[0] / "item.json",
            **({} if job.spec.map.storage else {"store": job.workdir / STORE}),
        },
        {"release": name, "zones": len(mosaics)},
    )


def _assess_release(
    job: Job, needed: Mapping[str, Manifest], store: MapStore, run: str
) -> AccuracyReport | None:
    """The accuracy of the map as it will be read, not of the network that made it.

    None where a champion mapped and there is no reference that no model was trained on.
    """
    if "label" not in needed and not _independent(job.spec):
        return None
    chips = open_chips(chips_place(job, needed["label"])) if "label" in needed else None
    samples = sample_map(
        job,
        chips,
        lambda mosaic: partial(store.read, mosaic.zone, ref=run),
        None,
    )
    return report(job, samples, "map")


def _independent(spec: MapSpec) -> bool:
    return spec.assess is not None and spec.assess.reference.region == "all"


def _refuse(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    mosaic = next(iter(open_mosaics(job.spec.imagery, job.data).values()))
    write_report(job, needed, mosaic, folder / "report.html", None)
    return Outcome({"report": Path("report.html")})


def _files(spec: MapSpec) -> list[str]:
    labels = [spec.labels.file] if spec.labels else []
    reference = [spec.assess.reference.file] if spec.assess else []
    front = [spec.publish.front] if spec.publish.front else []
    return [*scene_files(spec), *labels, *reference, *front]


PUBLISH = Stage(
    name="publish",
    needs=(*_NEEDS, "export", "map"),
    needs_with_champion=("adopt", "map"),
    sections=("name", "imagery", "labels", "assess", "map", "publish"),
    files=_files,
    work=_publish,
)
REFUSE = Stage(
    name="refuse",
    needs=_NEEDS,
    sections=("name", "imagery", "labels", "assess", "publish"),
    files=_files,
    work=_refuse,
)
