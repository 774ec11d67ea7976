"""A small report about a generated scene, for the tests of the page."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np

from terrafine.accuracy import GateDecision, GateEvidence, Samples, assess, compare, decide
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.publish import ReportData, View, cut_zooms, most_different
from terrafine.publish.overviews import mode_downsample
from terrafine.spec import GateSpec

GRID = PixelGrid("EPSG:32612", 30.0, 30.0, 0.0, 0.0)
WINDOW = Window(-137_000, 9_000, 48, 64)
FILL = 65535


@lru_cache(maxsize=1)
def view() -> View:
    """A scene of 48 x 64 pixels with fields, a blocky product of it and a map in between.

    The upper rows of the image are missing and not mapped (255); one corner has no class (0).
    """
    rng = np.random.default_rng(5)
    fields = rng.choice(np.array([1, 2, 3, 4, 5], np.uint8), (12, 16))
    reference = np.kron(fields, np.ones((4, 4), np.uint8))
    product = np.kron(mode_downsample(reference, 8), np.ones((8, 8), np.uint8))
    mapped = np.where(rng.random(reference.shape) < 0.8, reference, product).astype(np.uint8)
    image = (reference[None] * np.array([90, 70, 50, 110])[:, None, None]).astype(np.uint16)
    image += rng.integers(0, 40, image.shape, dtype=np.uint16)
    confidence = rng.integers(1, 101, reference.shape).astype(np.uint8)
    image[:, :3], mapped[:3], confidence[:3] = FILL, 255, 255
    mapped[-4:, -4:] = confidence[-4:, -4:] = 0
    return View(WINDOW, image, FILL, product, mapped, reference, confidence)


def gate(*, passed: bool) -> GateDecision:
    """A verdict; the refused one asks for more than any map can give."""
    data = report()
    spec = GateSpec(margin=-0.5 if passed else 0.9, max_unmapped=0.2)
    return decide(spec, GateEvidence(data.accuracy, data.product_accuracy, data.difference))


@lru_cache(maxsize=1)
def report() -> ReportData:
    """A full report, without a gate."""
    seen = view()
    assert seen.map_HW is not None
    assert seen.product_HW is not None
    assert seen.reference_HW is not None
    block = np.add.outer(np.arange(48) // 4 * 100, np.arange(64) // 4)
    samples = Samples(
        seen.map_HW.ravel(),
        seen.reference_HW.ravel(),
        unit=block.ravel().astype(np.int64),
        other=seen.product_HW.ravel(),
    )
    about = {"reference_name": "fields.tif", "kind": "raster", "resamples": 100}
    zooms = most_different(seen.map_HW, seen.product_HW, window=WINDOW, size=16, count=2)
    epochs = [
        {
            "epoch": epoch,
            "learning_rate": 0.01 / epoch,
            "train_loss": 1.5 / epoch,
            "validation_loss": 1.7 / epoch,
            "validation_agreement": 0.5 + 0.1 * epoch,
            "seconds": 1.0,
        }
        for epoch in (1, 2, 3)
    ]
    return ReportData(
        title="A test scene",
        created=datetime(2026, 3, 4, 5, 6, tzinfo=UTC),
        legend=SEVEN,
        grid=GRID,
        view=seen,
        bands=("red", "green", "blue", "nir"),
        zooms=cut_zooms(seen, zooms),
        class_pixels={code: int((seen.map_HW == code).sum()) for code in SEVEN.codes},
        accuracy=assess(samples, SEVEN, map_name="the map", **about),
        product_accuracy=assess(samples.of_other(), SEVEN, map_name="the product", **about),
        difference=compare(
            samples, SEVEN.codes, first="the map", second="the product", resamples=100
        ),
        preliminary_history=epochs[:2],
        history=epochs,
        agreement=np.array([0.1, 0.5, 0.7, 0.9]),
        notes=("The reference is older than the image.",),
        provenance={
            "model release": "r-17",
            "stages": [{"stage": "label", "seconds": 1.5}, {"stage": "map", "seconds": 2.5}],
            "versions": {"torch": "2.13.0"},
        },
        spec_text="name: test\n",
    )


def refused() -> ReportData:
    """The report of a model that the gate refused: there is no map."""
    data = report()
    return replace(
        data,
        view=replace(data.view, map_HW=None, confidence_HW=None),
        zooms=(),
        class_pixels=None,
        gate=gate(passed=False),
    )


def promoted() -> ReportData:
    """The report of a promoted map."""
    return replace(report(), gate=gate(passed=True))
