"""A small HRNet with weights drawn at random, saved and exported as a trained one would be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from terrafine.accuracy import GateDecision, RuleResult
from terrafine.export import (
    BundleInfo,
    ParityReport,
    Release,
    export_model,
    load_bundle,
    save_bundle,
    write_release,
)
from terrafine.export.session import Variant
from terrafine.legend import SEVEN
from terrafine.models import RawInput, RawModel, build_network
from terrafine.spec import ExportSpec, ModelSpec
from tests.imagery import smooth

WINDOW = 64
FILL = 0


@dataclass(frozen=True)
class Exported:
    bundle: Path
    graph: Path
    model: RawModel
    info: BundleInfo
    windows_NCHW: np.ndarray
    report: ParityReport


def images(count: int, *, seed: int = 0, size: int = WINDOW) -> np.ndarray:
    """(count, 4, size, size) uint16; the first has missing pixels, in one band only for some."""
    rng = np.random.default_rng(seed)
    windows = np.stack([smooth(rng, size, size) for _ in range(count)])
    windows[0, :, : size // 4] = FILL
    windows[0, 2, -3:] = FILL
    return windows


def random_model(info: BundleInfo, seed: int = 0) -> RawModel:
    """Every batch norm has statistics, scale and shift of its own, as after training."""
    bands, classes = len(info.bands), len(info.legend.classes)
    network = build_network(
        info.model, bands=bands, classes=classes, seed=seed, channels=info.channels
    )
    model = RawModel(RawInput(info.mean, info.std, info.fill), network)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.4, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.3, generator=generator)
    with torch.no_grad():
        model.train()
        for step in range(4):
            model(torch.from_numpy(images(4, seed=step)[:, :bands]))
        # the scale of every class's logits is made the same, so that each wins somewhere
        head = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
        assert head.bias is not None
        logits = model.eval()(torch.from_numpy(images(4, seed=5)[:, :bands]))
        scale = 2.0 / logits.std(dim=(0, 2, 3))
        head.bias.sub_(logits.mean(dim=(0, 2, 3))).mul_(scale)
        head.weight.mul_(scale.view(-1, 1, 1, 1))
    return model.eval()


def described(arch: str) -> BundleInfo:
    """A bundle's description without weights."""
    return BundleInfo(
        model=ModelSpec(arch=arch),
        bands=("red", "green", "blue", "nir"),
        fill=FILL,
        mean=(120.0, 130.0, 125.0, 128.0),
        std=(40.0, 45.0, 50.0, 42.0),
        legend=SEVEN,
        provenance={"run": "test"},
    )


PASSED = GateDecision(
    passed=True,
    subject="a model of the tests",
    evidence="none",
    rules=(RuleResult(name="made for tests", passed=True, required="-", found="-", reason=""),),
)


def small_release(
    folder: Path,
    *,
    seed: int = 0,
    window: int = WINDOW,
    variants: tuple[Variant, ...] = ("fp32",),
    gate: GateDecision = PASSED,
) -> Release:
    """A release in ``folder`` of a small U-Net that nobody trained; other seeds, other answers."""
    info = described("unet_w4")
    save_bundle(folder.with_name(f"{folder.name}-model"), random_model(info, seed), info)
    model, info = load_bundle(folder.with_name(f"{folder.name}-model"))
    # what an untrained network says in 8 bits is no more than similar
    spec = ExportSpec(
        variants=variants,
        reduced_class_agreement={"fp16": 0.9, "int8": 0.5},
        reduced_probability_error={"int8": 0.2},
    )
    real = images(3, seed=9, size=window)
    return write_release(
        folder, model, info, real, name=f"test-{seed}", gate=gate, window=window, spec=spec
    )


def export_small_hrnet(folder: Path) -> Exported:
    """Bundle and graph in ``folder``, through the same calls as the export stage's."""
    info = described("hrnet_w4")
    save_bundle(folder / "model", random_model(info), info)
    model, info = load_bundle(folder / "model")
    windows_NCHW = images(3, seed=9)
    graph = folder / "model.onnx"
    report = export_model(model, info, graph, windows_NCHW, window=WINDOW, spec=ExportSpec())
    return Exported(folder / "model", graph, model, info, windows_NCHW, report)
