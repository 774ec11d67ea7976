"""How far a window's edge is felt: what the halo is for, and what instance norm does to it.

    python benchmarks/seams.py --into runs/seams                   # trains the networks first
    python benchmarks/seams.py --into runs/seams --threads 2       # again: only what is not done

The paper's network, with instance norm, batch norm or both first, is trained for a while on a
generated landscape. On the scene held out, the logits of windows (core + halo) are held against
those of the whole image inside the core, and against those of the neighbouring window along the
line where two cores meet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from terrafine.export import load_bundle
from terrafine.geometry import Window
from terrafine.landscape import generate
from terrafine.models import RawModel, describe_spec
from terrafine.progress import progress
from terrafine.raster import open_mosaics
from terrafine.recipes import overlaid
from terrafine.spec import MappingSpec, load_spec

RESULTS = Path(__file__).parent / "results"
NORMS = ("batch", "instance", "instance-batch")
HALOS = (0, 16, 32, 64, 96, 128, 192, 256, 384)
DEFAULT = MappingSpec()

FloatArray = npt.NDArray[np.float32]


def trained(norm: str, options: argparse.Namespace) -> Path:
    """Folder of the network with that first norm, trained unless it has been."""
    data, work = options.into / "data", options.into / norm
    settings = {
        "name": f"seams-{norm}",
        "chips": {"size": options.chip},
        "model": {
            "arch": options.arch,
            "stem_channels": options.stem_channels,
            "first_norm": norm,
        },
        "training": {
            "preliminary_epochs": options.epochs,
            "batch": 8,
            "crop": options.crop,
            "crops_per_chip": 1,
            "precision": options.precision,
        },
    }
    spec = data / f"{norm}.yaml"
    whole = overlaid(yaml.safe_load((data / "spec.yaml").read_text()), settings)
    spec.write_text(yaml.safe_dump(whole, sort_keys=False))
    for stage in (["label"], ["train", "--preliminary"]):
        command = [Path(sys.executable).with_name("terrafine"), *stage, spec, "--workdir", work]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return (work / "train-preliminary" / "latest").resolve() / "model"


def held_out(data: Path) -> npt.NDArray[np.uint16]:
    """The scene nobody was trained on, (bands, H, W)."""
    scenes = [{"name": "held-out", "files": ["test/scene.tif"]}]
    imagery = load_spec(data / "spec.yaml").imagery.model_dump() | {"scenes": scenes}
    spec = type(load_spec(data / "spec.yaml").imagery).model_validate(imagery)
    (mosaic,) = open_mosaics(spec, data).values()
    return mosaic.read(mosaic.window)[0]


def logits_of(model: RawModel, image_CHW: npt.NDArray[np.uint16], seen: Window) -> FloatArray:
    """(classes, h, w) of one window of the image, in float32."""
    rows, cols = seen.slices(Window(0, 0, *image_CHW.shape[1:]))
    window = np.ascontiguousarray(image_CHW[None, :, rows, cols])
    with torch.inference_mode():
        return np.asarray(model(torch.from_numpy(window))[0].numpy())


def compared(found: FloatArray, against: FloatArray) -> dict[str, float]:
    """How far two sets of logits (classes, ...) are apart, and in how many pixels it matters."""
    apart = np.abs(found - against)
    return {
        "max": float(apart.max()),
        "p999": float(np.quantile(apart, 0.999)),
        "mean": float(apart.mean()),
        "changed": float((found.argmax(0) != against.argmax(0)).mean()),
    }


def measure(
    model: RawModel, image_CHW: npt.NDArray[np.uint16], cuts: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """One row for each (core, halo): two cores side by side in the middle of the image."""
    height, width = image_CHW.shape[1:]
    whole = logits_of(model, image_CHW, Window(0, 0, height, width))
    rows = []
    with progress("seams", total=len(cuts), unit="cut") as task:
        for core, halo in cuts:
            # on multiples of 32, as windows lie on the global grid: the network's strides agree
            top, middle = (height - core) // 64 * 32, width // 64 * 32
            cores = [Window(top, middle - core, core, core), Window(top, middle, core, core)]
            said = [logits_of(model, image_CHW, w.buffered(halo)) for w in cores]
            inside = [s[:, halo : halo + core, halo : halo + core] for s in said]
            truth = [whole[:, w.row : w.stop_row, w.col : w.stop_col] for w in cores]
            row = {"core": core, "halo": halo, "window": core + 2 * halo,
                   "cost": (1 + 2 * halo / core) ** 2,
                   **compared(np.stack(inside, 1), np.stack(truth, 1))}  # fmt: skip
            if halo:
                left, right = said
                edge = slice(halo, halo + core), slice(halo + core - 1, halo + core + 1)
                other = slice(halo, halo + core), slice(halo - 1, halo + 1)
                row["step"] = compared(left[:, *edge], right[:, *other])
            rows.append(row)
            task.advance()
    return rows


def spread(model: RawModel, image_CHW: npt.NDArray[np.uint16]) -> float:
    """Mean distance of a pixel's best logit from its second: what a difference has to reach."""
    size = min(512, *image_CHW.shape[1:])
    best = np.sort(logits_of(model, image_CHW, Window(0, 0, size, size)), axis=0)
    return float((best[-1] - best[-2]).mean())


def table(network: Mapping[str, Any]) -> Table:
    """For the terminal."""
    drawn = Table("core", "halo", "cost", "max", "99.9 %", "changed", "step: max", "step: changed",
                  title=f"{network['name']} first: |Δ logit| against the whole image")  # fmt: skip
    for row in network["rows"]:
        step = row.get("step")
        drawn.add_row(
            str(row["core"]), str(row["halo"]), f"{row['cost']:.2f}", f"{row['max']:.2g}",
            f"{row['p999']:.2g}", f"{100 * row['changed']:.4f} %",
            f"{step['max']:.2g}" if step else "", f"{100 * step['changed']:.4f} %" if step else "",
        )  # fmt: skip
    return drawn


def draw(path: Path, found: Sequence[dict[str, Any]], core: int) -> None:
    """Differences and changed classes against the halo's width."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left = figure.add_subplot(1, 2, 1, xlabel="halo (pixels)", ylabel="|Δ logit|", yscale="log")
    right = figure.add_subplot(1, 2, 2, xlabel="halo (pixels)", yscale="log",
                               ylabel="classes changed inside the core (%)")  # fmt: skip
    for network, color in zip(found, ("#1f77b4", "#e07b00", "#2ca02c", "#9467bd"), strict=False):
        rows = [row for row in network["rows"] if row["core"] == core]
        halos = [row["halo"] for row in rows]
        name = network["name"]
        left.plot(halos, [row["max"] for row in rows], color=color, label=f"{name}: largest")
        left.plot(halos, [row["p999"] for row in rows], color=color, linestyle="--",
                  label=f"{name}: 99.9 % below")  # fmt: skip
        right.plot(halos, [100 * row["changed"] or None for row in rows], color=color, marker=".",
                   label=name)  # fmt: skip
    for axes in (left, right):
        axes.axvline(DEFAULT.halo, color="0.6", linewidth=0.8)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.suptitle(f"Windows of core {core} against the whole image")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure; print the tables, write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--into", type=Path, required=True, help="landscape and networks")
    parser.add_argument("--arch", default="hrnet_w24")
    parser.add_argument("--stem-channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=1536, help="pixels a side of the whole image")
    parser.add_argument("--chip", type=int, default=128)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--norms", nargs="*", default=NORMS, choices=NORMS)
    parser.add_argument("--bundles", nargs="*", type=Path, default=[],
                        help="networks that terrafine has trained, measured too")  # fmt: skip
    parser.add_argument("--core", type=int, default=256, help="of the series over halos")
    parser.add_argument("--halos", nargs="*", type=int, default=HALOS)
    parser.add_argument("--cores", nargs="*", type=int, default=(128,),
                        help="also with the default halo")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS / "seams.json")
    options = parser.parse_args(arguments)
    widest = 2 * max(options.core + max(options.halos), *options.cores, 0)
    if widest > options.size:
        parser.error(f"--size {options.size}: two cores and their halos take {widest} pixels")
    torch.set_num_threads(options.threads)
    if not (options.into / "data" / "landscape.json").exists():
        generate(options.into / "data", seed=options.seed, size=options.size, scenes=1)
    image_CHW = held_out(options.into / "data")
    before = json.loads(options.json.read_text())["networks"] if options.json.exists() else []
    found = {network["name"]: network for network in before}
    side = DEFAULT.halo if DEFAULT.halo in options.halos else max(options.halos)
    cuts = [(options.core, halo) for halo in options.halos]
    cuts += [(core, side) for core in options.cores]
    for folder in [*options.bundles, *(trained(norm, options) for norm in options.norms)]:
        model, info = load_bundle(folder)
        name = f"{info.model.arch}, {info.model.first_norm} norm"
        cost = describe_spec(info.model, bands=len(info.bands), classes=len(info.legend.classes))
        history = json.loads((folder.parent / "history.json").read_text())
        found[name] = {
            "name": name,
            "model": info.model.model_dump(mode="json"),
            "epochs": len(history),
            "receptive_field": cost["receptive_field"],
            "best_over_second": spread(model, image_CHW),
            "rows": measure(model, image_CHW, cuts),
        }
        Console().print(table(found[name]))
    settings = {
        k: v for k, v in vars(options).items() if k not in ("into", "json", "threads", "bundles")
    }
    machine = {"machine": platform.machine(), "processors": os.cpu_count(),
               "torch": torch.__version__}  # fmt: skip
    result = {"machine": machine, "settings": settings, "networks": list(found.values())}
    options.json.write_text(json.dumps(result, indent=1, default=list) + "\n")
    draw(options.json.with_suffix(".png"), list(found.values()), options.core)


if __name__ == "__main__":
    main()
