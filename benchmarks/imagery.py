"""A generated country for benchmarks: many scenes in little room, since each file is a VRT that
shows the same pixels in another place."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import rasterio
import yaml
from affine import Affine

CRS = "EPSG:32650"
CODES = (10, 20, 30, 60, 80, 90)
_TILES = 8


def write_project(root: Path, *, chips: int, size: int) -> Path:
    """scene and product files and spec.yaml for ``chips`` chips of ``size`` pixels a side.

    The imagery has the entropy of a sensor: smooth patches and noise of some 60 numbers.
    """
    root.mkdir(parents=True)
    rows = min(_TILES, math.isqrt(chips))
    _write_scene(root / "scene.tif", rows * size)
    scenes = []
    for number, cols in enumerate(_strips(chips, rows)):
        name = f"scene-{number}"
        _write_view(root / f"{name}.vrt", number * rows * size, rows * size, cols * size)
        scenes.append({"name": name, "files": [f"{name}.vrt"]})
    _write_product(root / "product.tif", rows * size, len(scenes) * rows * size)
    spec = {
        "name": "benchmark",
        "imagery": {"scenes": scenes},
        "labels": {"file": "product.tif"},
        "chips": {"size": size, "block": 1, "validation_fraction": 0.1},
        "training": {"crop": size},
        "assess": {"reference": {"file": "product.tif"}},
    }
    (root / "spec.yaml").write_text(yaml.safe_dump(spec))
    return root / "spec.yaml"


def _strips(chips: int, rows: int) -> list[int]:
    """Chip columns of every scene, side by side."""
    cols = -(-chips // rows)
    return [min(rows, cols - start) for start in range(0, cols, rows)]


def _transform(col: int, scale: float = 1) -> Affine:
    # chips lie on multiples of their size from the corner of the CRS
    return Affine(3.0 * scale, 0, 3.0 * (2**17 + col), 0, -3.0 * scale, 3.0 * 2**20)


def _write_scene(path: Path, side: int) -> None:
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.normal(size=(side // 32 + 2, side // 32 + 2)), (side, side))
    profile = {
        "driver": "GTiff", "count": 4, "height": side, "width": side, "dtype": "uint16",
        "crs": CRS, "transform": _transform(0), "nodata": 0, "tiled": True,
        "blockxsize": 256, "blockysize": 256,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        for band in range(1, 5):
            noise = rng.normal(0, 60, (side, side)).astype(np.float32)
            file.write((1500 + 400 * smooth + noise).clip(1, 10_000).astype(np.uint16), band)


def _write_view(path: Path, col: int, height: int, width: int) -> None:
    """The scene's first columns in another place."""
    t = _transform(col)
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}"><NoDataValue>0</NoDataValue>'
        f'<SimpleSource><SourceFilename relativeToVRT="1">scene.tif</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
        f'<DstRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
        "</SimpleSource></VRTRasterBand>"
        for band in range(1, 5)
    )
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{CRS}</SRS>'
        f"<GeoTransform>{t.c}, {t.a}, 0, {t.f}, 0, {t.e}</GeoTransform>{bands}</VRTDataset>"
    )


def _write_product(path: Path, height: int, width: int) -> None:
    """Codes of FROM-GLC10 in pixels of 9 m."""
    rng = np.random.default_rng(1)
    shape = (height // 3 + 1, width // 3 + 1)
    coarse = rng.choice(np.array(CODES, np.uint8), (shape[0] // 12 + 1, shape[1] // 12 + 1))
    codes = coarse.repeat(12, 0).repeat(12, 1)[: shape[0], : shape[1]]
    profile = {
        "driver": "GTiff", "count": 1, "height": shape[0], "width": shape[1], "dtype": "uint8",
        "crs": CRS, "transform": _transform(0, 3), "nodata": 0, "tiled": True,
        "compress": "deflate",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(codes, 1)
