"""The two examples, as a newcomer runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from terrafine.mapping import open_map

ROOT = Path(__file__).parents[2]


def terrafine(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line at the project's root."""
    return subprocess.run(
        [Path(sys.executable).with_name("terrafine"), *map(str, arguments)],
        capture_output=True, text=True, timeout=1500, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.minutes(8)
@pytest.mark.timeout(1800)
def test_the_demo_maps_north_carolina_and_passes_its_gate(tmp_path: Path) -> None:
    done = terrafine("demo", "--into", tmp_path / "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "released" in done.stdout
    assert "licence" in done.stdout.lower()
    release = tmp_path / "demo/publish/latest"
    assert (release / "report.html").stat().st_size < 6_000_000
    with rasterio.open(release / "landcover.tif") as landcover:
        assert landcover.shape == (443, 489)
        assert landcover.transform.c == pytest.approx(630_534.0)
        assert landcover.colormap(1)[4][:3] == (0, 100, 200)
    accuracy = json.loads((release / "accuracy.json").read_text())
    assert accuracy["kind"] == "raster"
    assert len(open_map(tmp_path / "demo/map.icechunk").releases()) == 1


@pytest.mark.slow
@pytest.mark.minutes(7)
@pytest.mark.shared
@pytest.mark.timeout(1800)
def test_the_zion_example_runs_to_a_release(zion: Path, tmp_path: Path) -> None:
    done = terrafine("run", "examples/zion.yaml", "--data", zion, "--workdir", tmp_path / "zion")
    assert done.returncode == 0, done.stdout + done.stderr
    with (
        rasterio.open(tmp_path / "zion/publish/latest/landcover.tif") as landcover,
        rasterio.open(zion / "landsat_b2.tif") as band,
    ):
        assert (landcover.crs, landcover.transform) == (band.crs, band.transform)
