"""A small generated project: a scene with four spectrally different classes, a coarse product of
it in FROM-GLC10 codes, and the map both came from as the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
import yaml
from affine import Affine

SIZE = 192
CRS = "EPSG:32650"
# On purpose on no multiple of a chip, window or shard.
TRANSFORM = Affine(3.0, 0.0, 499_410.0, 0.0, -3.0, 4_400_016.0)
GLC10 = {1: 10, 2: 20, 4: 60, 5: 80}
# mean digital numbers in R, G, B, NIR of cropland, woodland, water, impervious
SPECTRA = {
    1: (900, 1100, 700, 3200),
    2: (400, 600, 350, 2600),
    4: (300, 450, 500, 200),
    5: (1900, 1800, 1700, 2100),
}


@dataclass(frozen=True)
class Project:
    """A folder with scene.tif, product.tif, reference.tif and spec.yaml."""

    root: Path
    truth_HW: np.ndarray
    image_CHW: np.ndarray

    @property
    def elsewhere(self) -> Affine:
        """Transform of a place 500 km off."""
        return Affine(9.0, 0.0, 499_200.0, 0.0, -9.0, 4_900_256.0)

    @property
    def spec(self) -> Path:
        return self.root / "spec.yaml"

    def change_spec(self, **sections: Any) -> None:
        """Overlay sections of the spec, e.g. ``gate={"min_samples": 10**9}``."""
        spec = yaml.safe_load(self.spec.read_text())
        for name, values in sections.items():
            if isinstance(values, dict):
                spec.setdefault(name, {}).update(values)
            else:
                spec[name] = values
        self.spec.write_text(yaml.safe_dump(spec))


def truth(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size) uint8: smooth patches of four classes with a road through them."""
    fields = [cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), 9) for _ in range(4)]
    codes = np.array(list(SPECTRA), np.uint8)[np.argmax(fields, axis=0)]
    codes[:, size // 3 : size // 3 + 3] = 5
    return codes


def write_raster(path: Path, array: np.ndarray, *, nodata: float | None, **changes: Any) -> None:
    """A GeoTIFF of (H, W) or (C, H, W) on the project's grid."""
    bands = array if array.ndim == 3 else array[None]
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2],
        "dtype": bands.dtype, "crs": CRS, "transform": TRANSFORM, "nodata": nodata,
    }  # fmt: skip
    with rasterio.open(path, "w", **{**profile, **changes}) as file:
        file.write(bands)


def make_project(root: Path, *, seed: int = 0, size: int = SIZE) -> Project:
    """Write the project into ``root``."""
    rng = np.random.default_rng(seed)
    truth_HW = truth(rng, size)
    mean_HWC = np.zeros((256, 4))
    for code, spectrum in SPECTRA.items():
        mean_HWC[code] = spectrum
    image = mean_HWC[truth_HW].transpose(2, 0, 1) * rng.normal(1, 0.08, (4, size, size))
    image_CHW = image.clip(1).astype(np.uint16)
    image_CHW[:, :5, :7] = 0
    write_raster(root / "scene.tif", image_CHW, nodata=0)
    write_raster(root / "reference.tif", truth_HW, nodata=0)
    # every 3 x 3 block takes the class of its middle pixel; a tenth of the blocks err
    blocks = truth_HW[1::3, 1::3].copy()
    wrong = rng.random(blocks.shape) < 0.2
    blocks[wrong] = rng.choice(list(SPECTRA), wrong.sum())
    lut = np.zeros(256, np.uint8)
    lut[list(GLC10)] = list(GLC10.values())
    write_raster(root / "product.tif", lut[blocks], nodata=0, transform=TRANSFORM @ Affine.scale(3))
    (root / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    return Project(root, truth_HW, image_CHW)


SPEC: dict[str, Any] = {
    "name": "generated",
    "imagery": {"scenes": [{"name": "scene", "files": ["scene.tif"]}]},
    "labels": {"file": "product.tif"},
    "chips": {"size": 32, "block": 1, "validation_fraction": 0.25},
    "filter": {"min_agreement": 0.1},
    "model": {"arch": "unet_w4", "first_norm": "batch"},
    "training": {
        "epochs": 8,
        "preliminary_epochs": 3,
        "batch": 8,
        "crop": 32,
        "crops_per_chip": 2,
        "learning_rate": 0.05,
    },
    "assess": {
        "reference": {"file": "reference.tif", "crosswalk": "seven"},
        "bootstrap": 200,
        "unit": 16,
    },
    "gate": {"better_than_product": False, "min_overall_accuracy": 0.2},
    "map": {"core": 64, "halo": 16, "shard": 128, "enhance": {"block": 64}},
    "publish": {"zooms": 2, "zoom_size": 32},
}
