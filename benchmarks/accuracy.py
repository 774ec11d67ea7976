"""How much better than its labels a recipe maps, where the truth is known.

    python benchmarks/accuracy.py landscape --into runs/accuracy
    python benchmarks/accuracy.py zion --data ../shared/data/zion_l8_nlcd2011
    python benchmarks/accuracy.py landscape --variants paper terrafine ours-no-ema --seeds 0 1

On the same held-out chips: the label product, the paper's recipe, ours, and the oracle, which is
the same network trained on the finest labels; on the landscape also on a scene that no training
saw. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accuracy_unseen import Unseen, rows_as_json, rows_table
from rich.console import Console
from rich.table import Table

from terrafine.accuracy import AccuracyReport
from terrafine.comparison import (
    Cell,
    measure,
    read_plan,
    run_cells,
    to_markdown,
    to_rich,
)
from terrafine.datasets import coarse_product
from terrafine.landscape import generate
from terrafine.recipes import overlaid
from terrafine.spec import load_spec
from terrafine.stages import Job, Manifest

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PAPER, OURS, ORACLE = "paper", "terrafine", "oracle"
# Of Dong et al. 2020: 86.34 - 81.24.
PAPER_GAIN = 0.0510
MORE_THAN_PAPER = 0.02
WAY_TO_ORACLE = 0.70


def variants(truth: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Variant -> keys of the spec; the first is what the others are compared with."""
    return {
        PAPER: {"recipe": "dong2020"},
        OURS: {"recipe": "terrafine"},
        # an oracle's labels are as fine as the image, and right
        ORACLE: {
            "recipe": "terrafine",
            "labels": dict(truth),
            "training": {"label_window": 1, "label_confusion": None},
        },
        "paper-batch-norm": {"recipe": "dong2020", "model": {"first_norm": "batch"}},
        "paper-no-weight": {"recipe": "dong2020", "training": {"class_weights": {}}},
        "paper-no-clahe": {"recipe": "dong2020", "map": {"enhance": {"enabled": False}}},
        "paper-no-filter": {"recipe": "dong2020", "filter": {"min_agreement": 0.0}},
        "ours-window-1": {"recipe": "terrafine", "training": {"label_window": 1}},
        "ours-window-5": {"recipe": "terrafine", "training": {"label_window": 5}},
        "ours-no-confusion": {"recipe": "terrafine", "training": {"label_confusion": None}},
        "ours-estimated": {"recipe": "terrafine", "training": {"label_confusion": "estimated"}},
        "ours-instance-norm": {"recipe": "terrafine", "model": {"first_norm": "instance"}},
        "ours-both-norms": {"recipe": "terrafine", "model": {"first_norm": "instance-batch"}},
        "ours-no-ema": {"recipe": "terrafine", "training": {"ema": None}},
    }


def landscape(into: Path, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Spec of a generated landscape (made where it is not there yet), and the oracle's labels."""
    root = into / "data"
    asked = {"seed": options.landscape_seed, "size": options.size, "scenes": options.scenes}
    if not (root / "landscape.json").exists():
        generate(root, **asked)
    made = json.loads((root / "landscape.json").read_text())
    found = {"seed": made["seed"], "size": made["size"], "scenes": len(made["train"]["images"])}
    if found != asked:
        raise SystemExit(f"{root}: holds the landscape {found}, not {asked}; take another --into")
    settings = {"map": {"core": 256, "halo": 64, "shard": 1024, "enhance": {"block": 256}}}
    spec = _write_spec(root / "spec.yaml", root / "benchmark.yaml", options, settings)
    return spec, {"file": "train/truth.tif", "crosswalk": "seven"}


def zion(into: Path, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Spec of the Zion scene with a coarse product made from its map, and that map."""
    root = into / "data"
    root.mkdir(parents=True, exist_ok=True)
    for file in sorted(options.data.glob("*.tif")):
        shutil.copyfile(file, root / file.name)
    example = ROOT / "examples" / "zion.yaml"
    truth = yaml.safe_load(example.read_text())["labels"]
    reference = load_spec(example).assessment.reference
    coarse_product(reference, root, root / "coarse.tif", seed=options.landscape_seed)
    labels = {"labels": {"file": "coarse.tif", "crosswalk": "FROM-GLC10"}}
    source = yaml.safe_load(example.read_text())
    del source["labels"]
    (root / "spec.yaml").write_text(yaml.safe_dump(source | labels, sort_keys=False))
    return _write_spec(root / "spec.yaml", root / "benchmark.yaml", options, {}), truth


def _write_spec(
    source: Path, target: Path, options: argparse.Namespace, settings: Mapping[str, Any]
) -> Path:
    """The scale of the benchmark over a spec."""
    spec = yaml.safe_load(source.read_text())
    # left to the recipe
    spec.get("model", {}).pop("first_norm", None)
    scale: dict[str, Any] = {
        "chips": {"size": options.chip, "block": 1, "validation_fraction": 0.25},
        "model": {"arch": options.arch, "stem_channels": options.stem_channels},
        "training": {
            "epochs": options.epochs,
            "preliminary_epochs": options.preliminary_epochs,
            "batch": 8,
            "crop": options.crop,
            "crops_per_chip": options.crops_per_chip,
            "learning_rate": options.learning_rate,
            "weight_decay": 0.0,
            "precision": options.precision,
        },
    }
    whole = overlaid(overlaid(spec, scale), settings)
    target.write_text(yaml.safe_dump(whole, sort_keys=False))
    return target


class _Lines:
    """Tells how the comparison gets on."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def cell(self, cell: Cell, number: int, total: int) -> None:
        self._console.print(f"[bold]{number}/{total} {cell}[/]")

    def stage(self, manifest: Manifest, *, was_done: bool) -> None:
        took = "done before" if was_done else f"{manifest.seconds:.0f} s"
        self._console.print(f"  {manifest.stage}: {took}")

    def failed(self, error: str) -> None:
        self._console.print(f"  [red]{error}[/]")


def findings(product: float | None, found: Mapping[str, float | None]) -> dict[str, Any]:
    """The aims of the project beside what was found; shares of 1, None where undefined.

    ``product``, ``found``: overall accuracy of the label product and of each variant.
    """
    paper, ours, oracle = (found.get(name) for name in (PAPER, OURS, ORACLE))
    gain = _minus(paper, product)
    more = _minus(ours, paper)
    above, reach = _minus(ours, product), _minus(oracle, product)
    way = above / reach if above is not None and reach is not None and reach > 0 else None
    return {
        "product": product,
        "paper": paper,
        "terrafine": ours,
        "oracle": oracle,
        "paper_over_product": {"found": gain, "aim": PAPER_GAIN},
        "terrafine_over_paper": {"found": more, "aim": MORE_THAN_PAPER},
        "way_from_product_to_oracle": {"found": way, "aim": WAY_TO_ORACLE},
    }


def _accuracy(report: AccuracyReport | None) -> float | None:
    return None if report is None else report.overall_accuracy.value


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def aims_table(found: Mapping[str, Any], title: str) -> Table:
    table = Table("aim", "at least", "found", title=title, title_justify="left")
    for key, text in (
        ("paper_over_product", "paper's recipe over the label product, points"),
        ("terrafine_over_paper", "ours over the paper's recipe, points"),
        ("way_from_product_to_oracle", "way from the labels to the oracle, %"),
    ):
        value = found[key]["found"]
        shown = "undefined" if value is None else f"{100 * value:+.1f}"
        table.add_row(text, f"{100 * found[key]['aim']:+.1f}", shown)
    return table


def main() -> None:
    options = _options()
    into = options.into / options.scene
    into.mkdir(parents=True, exist_ok=True)
    make = {"landscape": landscape, "zion": zion}[options.scene]
    spec_file, truth = make(into, options)
    file = spec_file.with_name(f"{options.scene}.yaml")
    every = variants(truth)
    content = {
        "base": spec_file.name,
        "seeds": options.seeds,
        "variants": {name: every[name] for name in every if name in options.variants},
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    plan = read_plan(file)
    console = Console()
    outcomes = run_cells(
        plan, lambda spec: Job(spec, spec_file.parent, into / "work"), _Lines(console)
    )
    comparison = measure(plan, outcomes)
    console.print(to_rich(comparison))
    if comparison.failed:
        raise SystemExit("a cell failed, so no aim is told; what it said is above")
    found = findings(
        _accuracy(comparison.product),
        {row.variant: _accuracy(row.report) for row in comparison.rows},
    )
    console.print(aims_table(found, "Aims, on the held-out chips"))
    result: dict[str, Any] = {
        "benchmark": "accuracy",
        "scene": options.scene,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "settings": {k: v for k, v in vars(options).items() if not isinstance(v, Path)},
        "aims": found,
        "comparison": json.loads(comparison.model_dump_json()),
    }
    if options.scene == "landscape":
        rows = Unseen(plan.base, spec_file.parent, into / "work", unit=options.chip).rows(
            outcomes, plan.variants[0]
        )
        product, *others = rows
        elsewhere = findings(
            _accuracy(product["report"]),
            {row["variant"]: _accuracy(row["report"]) for row in others},
        )
        console.print(rows_table(rows))
        console.print(aims_table(elsewhere, "The same on that scene"))
        result |= {"unseen": rows_as_json(rows), "aims_unseen": elsewhere}
    target = options.json or RESULTS / f"accuracy_{options.scene}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1))
    (into / "comparison.md").write_text(to_markdown(comparison))
    console.print(f"written: {target}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scene", choices=("landscape", "zion"))
    parser.add_argument("--into", type=Path, default=Path("runs/accuracy"), help="work folder")
    parser.add_argument("--data", type=Path, help="folder of the Zion scene")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=tuple(variants({})),
        default=[PAPER, OURS, ORACLE],
        help="what is compared; those with a hyphen leave out or change one part of a recipe",
    )
    parser.add_argument("--landscape-seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=1024, help="pixels a side of a scene")
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--arch", default="hrnet_w8")
    parser.add_argument("--stem-channels", type=int, default=16)
    parser.add_argument("--chip", type=int, default=256)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--crops-per-chip", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--preliminary-epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    if options.scene == "zion" and options.data is None:
        parser.error("--data: give the folder of the Zion scene")
    return options


if __name__ == "__main__":
    main()
