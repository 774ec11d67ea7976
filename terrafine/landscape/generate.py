"""Write a landscape: training scenes, a held-out scene, truth, product, points, spec, figures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from terrafine.datasets import glc10_codes
from terrafine.errors import DatasetError
from terrafine.geometry import Window
from terrafine.landscape.cover import make_cover
from terrafine.landscape.folder import BANDS, GRID, Landscape, Part, spec_text, summary
from terrafine.landscape.optics import (
    NODATA,
    UInt16Array,
    draw_acquisition,
    observe,
    reflectance,
)
from terrafine.landscape.picture import picture
from terrafine.landscape.points import draw_points, write_points
from terrafine.landscape.product import Product, make_product
from terrafine.legend import SEVEN, UInt8Array
from terrafine.progress import progress
from terrafine.raster import write_geotiff

SMALLEST, LARGEST = 128, 4096
LARGEST_SEED = 2**31 - 1
# Scenes start on multiples of this, so that chips up to this size are cut whole, and lie at least
# this far apart, so that no window sees two of them.
_RASTER = 1024
_FIRST_ROW, _FIRST_COL = -1432 * _RASTER, 163 * _RASTER
_POINTS_STREAM: Final = 2**31


@dataclass(frozen=True)
class _Scene:
    """One scene in memory."""

    window: Window
    image: UInt16Array
    truth: UInt8Array
    product: Product


def generate(into: Path, *, seed: int = 0, size: int = 1024, scenes: int = 3) -> Landscape:
    """Make a landscape with known truth in the folder ``into``.

    ``scenes`` training scenes of ``size`` x ``size`` pixels of 3 m in ``train/``, and a held-out
    scene of the same size in ``test/``: another part of the country, taken on another day. The
    same arguments give the same bytes; everything is held in memory, some 150 bytes per pixel of
    a scene while it is made. DatasetError when the arguments or the folder will not do.
    """
    _check(into, seed, size, scenes)
    (into / "landscape.json").unlink(missing_ok=True)  # it is there when everything else is
    made: list[_Scene] = []
    with progress("landscape", total=scenes + 1, unit="scene") as task:
        for number in range(scenes + 1):
            made.append(_make(seed, size, number))
            task.advance(product_oa=made[-1].product.overall_accuracy)
    landscape = Landscape(
        root=into,
        seed=seed,
        size=size,
        train=_write_part(
            into / "train", made[:-1], [f"scene-{number}.tif" for number in range(scenes)], seed
        ),
        test=_write_part(into / "test", made[-1:], ["scene.tif"], seed),
        points=into / "test" / "points.gpkg",
        point_counts=_write_points(into / "test" / "points.gpkg", made[-1], seed),
        spec=into / "spec.yaml",
        picture=into / "landscape.png",
        summary=into / "landscape.json",
    )
    held = made[-1]
    _write(landscape.spec, spec_text(landscape).encode())
    _write(landscape.picture, picture(held.image, held.truth, held.product.seen, nodata=NODATA))
    _write(landscape.summary, json.dumps(summary(landscape), indent=1).encode() + b"\n")
    return landscape


def _check(into: Path, seed: int, size: int, scenes: int) -> None:
    if into.exists() and not into.is_dir():
        raise DatasetError(f"{into}: is a file; give a folder for the landscape")
    if not 0 <= seed <= LARGEST_SEED:
        raise DatasetError(
            f"seed {seed}: a spec's seed is 0 to {LARGEST_SEED}; choose one of these"
        )
    if not SMALLEST <= size <= LARGEST:
        raise DatasetError(
            f"size {size}: a scene has {SMALLEST} to {LARGEST} pixels a side; choose one of these"
        )
    if scenes < 1:
        raise DatasetError(f"{scenes} training scenes: at least one is needed")


def _make(seed: int, size: int, number: int) -> _Scene:
    """One scene, a function of the seed and its number."""
    rng = np.random.default_rng([seed, number])
    step = -(-size // _RASTER) + 1
    window = Window(_FIRST_ROW, _FIRST_COL + number * step * _RASTER, size, size)
    cover = make_cover(size, rng)
    ground = reflectance(cover, rng)
    image = observe(ground, cover.terrain, draw_acquisition(rng), rng)
    product = make_product(cover.truth, cover.thing, ground, GRID, window, rng)
    return _Scene(window, image, cover.truth, product)


def _write_part(folder: Path, made: Sequence[_Scene], names: Sequence[str], seed: int) -> Part:
    """The images one by one, truth and product each as one raster over all of them."""
    tags = {"made": f"terrafine landscape, seed {seed}"}
    images = tuple(folder / name for name in names)
    for path, scene in zip(images, made, strict=True):
        write_geotiff(
            path, scene.image, GRID, scene.window,
            nodata=NODATA, legend=None, tags=tags, description=BANDS,
        )  # fmt: skip
    truth, window = _joined([(scene.truth, scene.window) for scene in made])
    write_geotiff(folder / "truth.tif", truth, GRID, window, nodata=0, legend=SEVEN, tags=tags)
    codes, window = _joined([(scene.product.codes, scene.product.window) for scene in made])
    write_geotiff(
        folder / "product.tif", glc10_codes(SEVEN)[codes], made[0].product.grid, window,
        nodata=0, legend=None, tags=tags, description="FROM-GLC10 codes",
    )  # fmt: skip
    return Part(
        images,
        folder / "truth.tif",
        folder / "product.tif",
        tuple(scene.window for scene in made),
        np.sum([scene.product.matrix for scene in made], axis=0),
        float(np.mean([scene.product.majority_oa for scene in made])),
    )


def _joined(pieces: Sequence[tuple[UInt8Array, Window]]) -> tuple[UInt8Array, Window]:
    """Rasters of one grid as one, 0 between them."""
    window = pieces[0][1]
    for _, other in pieces[1:]:
        window = window.union(other)
    joined = np.zeros(window.shape, np.uint8)
    for codes, own in pieces:
        joined[own.slices(window)] = codes
    return joined, window


def _write_points(path: Path, held: _Scene, seed: int) -> dict[str, int]:
    """Points in the held-out scene where the image has data; how many of every class."""
    usable = (held.image != NODATA).all(axis=0)
    rng = np.random.default_rng([seed, _POINTS_STREAM])
    frame = draw_points(held.truth, usable, GRID, held.window, rng)
    write_points(path, frame)
    counts = np.bincount(frame["class"], minlength=256)
    return {name: int(counts[code]) for code, name in zip(SEVEN.codes, SEVEN.names, strict=True)}


def _write(path: Path, content: bytes) -> None:
    """A small file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
