"""``terrafine spec``: explain and describe specs without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from terrafine.cli.options import DataOption, JsonOption, SpecArgument
from terrafine.errors import SpecError
from terrafine.legend import Legend
from terrafine.models import describe_spec
from terrafine.spec import MapSpec, data_root, load_spec, resolve_in

app = typer.Typer(no_args_is_help=True, help="Check and describe specs.")


@app.command()
def check(spec: SpecArgument, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Explain a spec without running it: what it would do, and which files it finds.

    Example: `terrafine spec check examples/north-carolina.yaml --data demo/data`
    """
    loaded = load_spec(spec)
    root = data_root(spec, data)
    files = {name: resolve_in(root, name).exists() for name in named_files(loaded)}
    if as_json:
        shown = {"spec": loaded.model_dump(mode="json"), "digest": loaded.digest(), "files": files}
        typer.echo(json.dumps(shown, indent=2))
    else:
        _explain(loaded, root, files)
    missing = [name for name, found in files.items() if not found]
    if missing:
        raise SpecError(
            f"{spec}: under the data root {root} there is no {', '.join(missing)}; "
            "set --data or TERRAFINE_DATA to the folder that holds it"
        )


@app.command()
def schema() -> None:
    """Print the JSON schema of a spec, for editors and other programs."""
    typer.echo(json.dumps(MapSpec.model_json_schema(), indent=2))


@app.command()
def show(spec: SpecArgument) -> None:
    """Print the spec with every default written out."""
    typer.echo(load_spec(spec).to_yaml(), nl=False)


def named_files(spec: MapSpec) -> list[str]:
    """Every data file or folder on this machine that a spec names, once."""
    catalogue = spec.imagery.catalogue
    files = [file for scene in spec.imagery.scenes for file in scene.files]
    if catalogue is not None:
        files += [name for name in (catalogue.source, catalogue.region) if name]
    files += [spec.map.region] if spec.map.region else []
    files += [spec.champion] if spec.champion else []
    files += [spec.labels.file] if spec.labels else []
    files += [spec.assess.reference.file] if spec.assess else []
    files += [spec.gate.champion] if spec.gate.champion else []
    return list(dict.fromkeys(file for file in files if "://" not in file))


def _explain(spec: MapSpec, root: Path, files: dict[str, bool]) -> None:
    legend = spec.resolve_legend()
    mapping = spec.map
    scenes = len(spec.imagery.scenes)
    source = f"{scenes} scene{'s' * (scenes > 1)}"
    if spec.imagery.catalogue is not None:
        source = f"catalogue {spec.imagery.catalogue.source}"
    rows = {
        "imagery": f"{source}, bands {', '.join(spec.imagery.bands)}",
        "legend": f"{legend.name}: {', '.join(legend.names)}",
        **({"champion": f"{spec.champion}; nothing is trained"} if spec.champion else {}),
        **({} if spec.champion else _training_rows(spec, legend)),
        "map": f"windows {mapping.window} (core {mapping.core}), shards {mapping.shard}, "
        + ("CLAHE blocks " + str(mapping.enhance.block) if mapping.enhance.enabled else "no CLAHE"),
        "digest": spec.digest()[:12],
    }
    table = Table(title=f"{spec.name}", show_header=False, title_justify="left")
    for key, value in rows.items():
        table.add_row(key, value)
    console = Console()
    console.print(table)
    for name, found in files.items():
        console.print(f"{'found  ' if found else 'MISSING'} {root / name}", soft_wrap=True)


def _training_rows(spec: MapSpec, legend: Legend) -> dict[str, str]:
    """What is said of a run that teaches a model and judges it."""
    network = describe_spec(spec.model, bands=len(spec.imagery.bands), classes=len(legend.classes))
    labels, reference, training = spec.label_product, spec.assessment.reference, spec.training
    rules = spec.gate.model_dump(exclude_defaults=True).items()
    return {
        "labels": f"{labels.file} through crosswalk {labels.resolve_crosswalk(legend).name}",
        "chips": f"{spec.chips.size} x {spec.chips.size} pixels, "
        f"{spec.chips.validation_fraction:.0%} for validation in blocks of "
        f"{spec.chips.block} x {spec.chips.block} chips",
        "filter": f"chips agreeing on less than {spec.filter.min_agreement:.0%} are dropped",
        "network": f"{spec.model.arch}, {network['parameters']:,} parameters, "
        f"{network['macs_per_pixel']:,.0f} MAC per pixel, sees {network['receptive_field']} pixels",
        "training": f"{training.epochs} epochs of batch {training.batch}, "
        f"crops {training.crop}, SGD from {training.learning_rate:g}",
        "assessment": f"against {reference.file}, {reference.region}",
        "gate": ", ".join(f"{key} {value}" for key, value in rules)
        or "better than the label product",
    }
