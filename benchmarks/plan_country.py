"""Planning a country: ``python benchmarks/plan_country.py``.

A generated country of China's size (9.6 million km2 over the UTM zones 43N to 53N) under more than
10 000 scenes of 3-m imagery, listed in a GeoParquet, is planned by ``terrafine map plan``: in how
many seconds, in how much memory, and what comes out. No scene of it exists; planning opens none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import shapely
import yaml

AREA_KM2 = 9.6e6
ZONES = range(43, 54)
PIXEL = 3.0
# Pixels a side of a scene, and from one scene to the next: neighbours overlap by 2 %.
SCENE = 10_200
STRIDE = 10_000
RESULTS = Path(__file__).parent / "results" / "plan_country.json"


def outline(area_km2: float) -> shapely.Polygon:
    """A coast with bays, of that area, from 73.5 to 134.5 degrees east where it is a country's."""
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    radius = (
        1 + 0.08 * np.sin(5 * angle + 1) + 0.05 * np.sin(11 * angle) + 0.02 * np.sin(29 * angle)
    )
    size = math.sqrt(area_km2 / AREA_KM2)
    # as wide as zones 43N to 53N, and as high as the area asks for
    lon = 104 + 27.0 * size * radius * np.cos(angle)
    low, high = 1.0, 40.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        shape = shapely.Polygon(np.column_stack([lon, 36 + middle * size * radius * np.sin(angle)]))
        found = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shape)[0]) / 1e6
        low, high = (middle, high) if found < area_km2 else (low, middle)
    return shape


def scenes(country: shapely.Polygon) -> geopandas.GeoDataFrame:
    """Footprints on each zone's 3-m grid, zone by zone, that touch the country."""
    rows: list[dict[str, Any]] = []
    outlines: list[shapely.Polygon] = []
    rng = np.random.default_rng(0)
    for zone in ZONES:
        west = -180 + 6 * (zone - 1)
        part = shapely.intersection(country, shapely.box(west, -80, west + 6, 84))
        if part.is_empty:
            continue
        crs = f"EPSG:326{zone}"
        forward = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        bent = shapely.transform(
            shapely.segmentize(part, 0.05),
            lambda xy, t=forward: np.column_stack(t.transform(*xy.T)),
        )
        shapely.prepare(bent)
        step, size = STRIDE * PIXEL, SCENE * PIXEL
        left, bottom, right, top = bent.bounds
        for x in np.arange(left // step * step, right, step):
            for y in np.arange(bottom // step * step, top, step):
                box = shapely.box(x, y, x + size, y + size)
                if not shapely.intersects(bent, box):
                    continue
                outlines.append(box)
                rows.append({
                    "id": f"{zone}-{x / step:.0f}-{y / step:.0f}",
                    "files": [f"scenes/{zone}/{x / step:.0f}/{y / step:.0f}.tif"],
                    "proj:code": crs,
                    "proj:transform": [PIXEL, 0, x, 0, -PIXEL, y + size],
                    "proj:shape": [SCENE, SCENE],
                    "datetime": f"2020-0{1 + len(rows) % 9}-15T03:00:00Z",
                    "eo:cloud_cover": round(float(rng.uniform(0, 30)), 1),
                })  # fmt: skip
    lonlat = []
    for row, box in zip(rows, outlines, strict=True):
        back = pyproj.Transformer.from_crs(row["proj:code"], "EPSG:4326", always_xy=True)
        lonlat.append(
            shapely.transform(box, lambda xy, t=back: np.column_stack(t.transform(*xy.T)))
        )
    return geopandas.GeoDataFrame(rows, geometry=lonlat, crs="EPSG:4326")


def write_country(root: Path, *, area_km2: float = AREA_KM2) -> Path:
    """Region, catalogue and spec of the country in ``root``; the spec's path."""
    country = outline(area_km2)
    geopandas.GeoDataFrame(geometry=[country], crs="EPSG:4326").to_file(root / "country.gpkg")
    scenes(country).to_parquet(root / "scenes.parquet", index=False)
    spec = {
        "name": "country",
        "imagery": {"catalogue": {"source": "scenes.parquet", "order": "cloud_cover"}, "nodata": 0},
        "labels": {"file": "product.tif"},
        "assess": {"reference": {"file": "reference.gpkg"}},
        "map": {"region": "country.gpkg"},
    }
    (root / "spec.yaml").write_text(yaml.safe_dump(spec))
    return root / "spec.yaml"


def measure(area_km2: float, png: Path | None) -> dict[str, Any]:
    """Seconds, peak memory and outcome of one ``terrafine map plan`` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        spec = write_country(Path(folder), area_km2=area_km2)
        command = [Path(sys.executable).with_name("terrafine"), "map", "plan", spec, "--json",
                   "--workers", "64", "--gpus", "8"]  # fmt: skip
        if png is not None:
            command += ["--png", png]
        started = time.monotonic()
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = process.stdout.read()
        # of this child alone: RUSAGE_CHILDREN remembers the largest that ever was
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    plan = json.loads(said)
    return {
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor()},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mb": round(used.ru_maxrss / 1024),
        "picture": png is not None,
        **{k: plan["total"][k] for k in ("scenes", "shards", "pixels", "area_km2", "windows")},
        "zones": len(plan["zones"]),
        "plan": plan,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--area", type=float, default=AREA_KM2, help="km2")
    parser.add_argument("--png", type=Path, help="keep the picture here")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = measure(options.area, options.png)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{found['scenes']:,} scenes in {found['zones']} zones, {found['shards']:,} shards, "
        f"{found['pixels']:.3e} pixels, {found['windows']:,} windows: planned in "
        f"{found['seconds']} s ({found['cpu_seconds']} s of CPU) and {found['peak_rss_mb']} MB"
    )


if __name__ == "__main__":
    main()
