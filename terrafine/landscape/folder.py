"""What a landscape's folder holds, its figures, and the spec that trains on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from terrafine.geometry import PixelGrid, Window
from terrafine.landscape.noise import Int64Array
from terrafine.landscape.points import PAPER_COUNTS
from terrafine.landscape.product import PUBLISHED_OA
from terrafine.landscape.terrain import PIXEL_METRES
from terrafine.legend import SEVEN
from terrafine.spec import LabelSource

CRS: Final = "EPSG:32650"
GRID: Final = PixelGrid(CRS, PIXEL_METRES, PIXEL_METRES, 0.0, 0.0)
BANDS: Final = ("red", "green", "blue", "nir")
# Pixels a side of a scene from which on, of a chip, of a crop.
_CHIPS = ((2048, 256, 128), (1024, 128, 96), (256, 64, 64), (0, 32, 32))


@dataclass(frozen=True)
class Part:
    """The training scenes, or the held-out scene: files, and figures of all its pixels.

    ``images``: 4-band uint16. ``truth``: uint8 codes of the seven classes at 3 m. ``product``:
    FROM-GLC10 codes at 10 m. ``windows``: where each scene lies on the landscape's grid.
    ``matrix``: (7, 7) pixels, rows product, columns truth. ``majority_oa``: accuracy of the
    product if it had no error but its mixed cells.
    """

    images: tuple[Path, ...]
    truth: Path
    product: Path
    windows: tuple[Window, ...]
    matrix: Int64Array
    majority_oa: float

    @property
    def shares(self) -> dict[str, float]:
        """Share of the area of every class."""
        share = self.matrix.sum(axis=0) / self.matrix.sum()
        return dict(zip(SEVEN.names, share.tolist(), strict=True))

    @property
    def product_oa(self) -> float:
        """Overall accuracy of the product against the truth, by 3-m pixels."""
        return float(np.trace(self.matrix) / self.matrix.sum())

    @property
    def producers_accuracy(self) -> dict[str, float]:
        """Of every class, the share that the product has right."""
        found = np.diag(self.matrix) / np.maximum(self.matrix.sum(axis=0), 1)
        return dict(zip(SEVEN.names, found.tolist(), strict=True))


@dataclass(frozen=True)
class Landscape:
    """What was written into ``root``; every path is absolute or relative as ``root`` is."""

    root: Path
    seed: int
    size: int
    train: Part
    test: Part
    points: Path
    point_counts: dict[str, int]
    spec: Path
    picture: Path
    summary: Path
    grid: PixelGrid = GRID

    @property
    def product_labels(self) -> LabelSource:
        """The training part's product, as a spec's ``labels``."""
        return LabelSource(file=self.train.product.relative_to(self.root).as_posix())

    @property
    def truth_labels(self) -> LabelSource:
        """The training part's truth, as the ``labels`` of an oracle."""
        truth = self.train.truth.relative_to(self.root).as_posix()
        return LabelSource(file=truth, crosswalk="seven")


def summary(landscape: Landscape) -> dict[str, Any]:
    """Every figure of a landscape, as it stands in ``landscape.json``."""

    def part(found: Part) -> dict[str, Any]:
        return {
            "images": [path.relative_to(landscape.root).as_posix() for path in found.images],
            "truth": found.truth.relative_to(landscape.root).as_posix(),
            "product": found.product.relative_to(landscape.root).as_posix(),
            "shares": found.shares,
            "product_oa": found.product_oa,
            "product_producers_accuracy": found.producers_accuracy,
            "majority_oa": found.majority_oa,
            "product_matrix": found.matrix.tolist(),
        }

    return {
        "seed": landscape.seed,
        "size": landscape.size,
        "crs": CRS,
        "pixel_metres": PIXEL_METRES,
        "published_product_oa": PUBLISHED_OA,
        "train": part(landscape.train),
        "test": part(landscape.test),
        "points": landscape.point_counts,
        "points_short": {
            name: paper - found
            for (name, found), paper in zip(
                landscape.point_counts.items(), PAPER_COUNTS, strict=True
            )
            if found < paper
        },
    }


def spec_text(landscape: Landscape) -> str:
    """A spec for `terrafine run`: trained on the product, assessed where nothing was trained on.

    The held-out scene is not in it, so that no chip of it can be trained on.
    """
    # of three scenes 38 chips are held out from 512 pixels up, and the gate asks for 30
    chip, crop = next(sizes for least, *sizes in _CHIPS if landscape.size >= least)
    train = landscape.train
    content = {
        "name": f"landscape-{landscape.seed}",
        "seed": landscape.seed,
        "imagery": {
            "bands": list(BANDS),
            "scenes": [
                {"name": path.stem, "files": [path.relative_to(landscape.root).as_posix()]}
                for path in train.images
            ],
        },
        "labels": landscape.product_labels.model_dump(mode="json", exclude_defaults=True),
        "chips": {"size": chip, "block": 1, "validation_fraction": 0.2},
        "model": {"arch": "hrnet_w8", "stem_channels": 16},
        "training": {
            "epochs": 12,
            "preliminary_epochs": 4,
            "batch": 8,
            "crop": crop,
            "crops_per_chip": 2,
            "learning_rate": 0.05,
            "weight_decay": 0.0001,
        },
        "assess": {
            "reference": {
                **landscape.truth_labels.model_dump(mode="json", exclude_defaults=True),
                "region": "validation",
            },
        },
        "map": {"core": 256, "halo": 64, "shard": 1024, "enhance": {"block": 256}},
        "publish": {
            "title": f"Landscape with known truth, seed {landscape.seed}",
            "notes": [
                "Generated imagery with known truth (terrafine landscape). Reference: the truth "
                "of the training scenes' validation chips; the held-out scene in test/ is for "
                "benchmarks/accuracy.py."
            ],
        },
    }
    heading = (
        "# Made by `terrafine landscape`. For the oracle set labels to "
        "{file: train/truth.tif, crosswalk: seven}.\n"
    )
    return heading + yaml.safe_dump(content, sort_keys=False)
