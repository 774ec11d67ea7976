"""Which specs a comparison runs: from a comparison file, or the paper's matrix around a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from terrafine.comparison.matrix import crossed, paper_matrix, search_axes
from terrafine.comparison.pruned import require_prunable
from terrafine.errors import PruningError, SpecError
from terrafine.recipes import overlaid
from terrafine.spec import DataPath, MapSpec, Name, Section, parse_spec
from terrafine.spec_errors import explain_validation
from terrafine.strict_yaml import load_yaml


def _once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {', '.join(map(str, seeds))}: one is named twice")
    return seeds


# Points of overall accuracy.
WITHIN = 0.5

Options = Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]


class ComparisonSpec(Section):
    """A comparison file. The first variant is the one that the others are compared with."""

    base: DataPath = Field(description="spec that all variants start from, beside this file")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_once)] = Field(
        (), description="each variant is run with each; default: the base's"
    )
    variants: Options | None = Field(
        None, description="name -> keys of the spec that it sets otherwise than the base"
    )
    search: Annotated[dict[Name, Options], Field(min_length=1)] | None = Field(
        None,
        description="instead of variants: axis -> option -> keys of the spec that it sets; every "
        "option of each axis is combined with every one of the others",
    )
    within: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        WITHIN, description="points of overall accuracy that the fastest may lose to the first"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.variants is None) == (self.search is None):
            raise ValueError("give either variants or search")
        return self


@dataclass(frozen=True)
class Cell:
    """One variant with one seed."""

    variant: str
    spec: MapSpec

    @property
    def seed(self) -> int:
        """What everything random in it is drawn from."""
        return self.spec.seed

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A comparison that can be run: ``cells`` seed by seed, ``spec_file`` that of the base,
    ``within``: points of overall accuracy that the fastest network may lose to the first."""

    name: str
    base: MapSpec
    spec_file: Path
    cells: tuple[Cell, ...]
    within: float = WITHIN

    @property
    def variants(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(dict.fromkeys(cell.variant for cell in self.cells))

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order of the file."""
        return tuple(dict.fromkeys(cell.seed for cell in self.cells))


def read_plan(file: Path, *, search: bool = False) -> Plan:
    """The comparison of a comparison file, or the paper's matrix around an ordinary spec; with
    ``search`` the one for a fast network around it.

    Every variant is checked before any is run: SpecError names the file, the variant, the key and
    the remedy.
    """
    data = _mapping(file)
    if "variants" not in data and "search" not in data:
        base = _parsed(data, where=str(file))
        if search:
            return _plan(f"{file.stem}-search", file, file, data, crossed(search_axes(base)))
        return _plan(file.stem, file, file, data, paper_matrix(base))
    if search:
        raise SpecError(
            f"{file}: is a comparison already, which --search would make of a spec; leave --search "
            "out, or give it the spec"
        )
    try:
        comparison = ComparisonSpec.model_validate(data)
    except ValidationError as error:
        schema = ComparisonSpec.model_json_schema()
        raise SpecError(f"{file}: " + "; ".join(explain_validation(error, schema))) from error
    spec_file = file.parent / comparison.base
    changes = crossed(comparison.search) if comparison.search else comparison.variants
    plan = _plan(file.stem, file, spec_file, _mapping(spec_file), changes or {}, comparison.seeds)
    return replace(plan, within=comparison.within)


def _plan(
    name: str,
    file: Path,
    spec_file: Path,
    data: Mapping[str, Any],
    changes: Mapping[str, Mapping[str, Any] | None],
    seeds: tuple[int, ...] = (),
) -> Plan:
    base = _parsed(data, where=str(spec_file))
    cells = tuple(
        Cell(
            variant,
            _parsed(
                overlaid(_changed(data, override or {}), {"seed": seed}),
                where=f"{file}: variant {variant}",
            ),
        )
        for seed in seeds or (base.seed,)
        for variant, override in changes.items()
    )
    for variant, override in changes.items():
        if "seed" in (override or {}):
            raise SpecError(f"{file}: variant {variant}: seed is set by `seeds`, for all variants")
    _require_one_yardstick(file, base, cells)
    _require_prunable(file, cells)
    return Plan(name, base, spec_file, cells)


def _changed(data: Mapping[str, Any], override: Mapping[str, Any]) -> Mapping[str, Any]:
    """The base with a variant's keys; a null takes a part out of ``prune.stage_ratios``."""
    merged = overlaid(data, override)
    prune = merged.get("prune")
    ratios = prune.get("stage_ratios") if isinstance(prune, Mapping) else None
    if not isinstance(prune, Mapping) or not isinstance(ratios, Mapping):
        return merged
    left = {part: ratio for part, ratio in ratios.items() if ratio is not None}
    return {**merged, "prune": {**prune, "stage_ratios": left}}


def _require_prunable(file: Path, cells: tuple[Cell, ...]) -> None:
    """What a pruning names must be there, or it fails once the network is trained."""
    for cell in cells:
        try:
            require_prunable(cell.spec)
        except PruningError as error:
            raise SpecError(
                f"{file}: variant {cell.variant}: {error}; in the variant's `prune` name parts of "
                f"{cell.spec.model.arch}, and set those of the base's stage_ratios that it has not "
                "to null"
            ) from error


def _require_one_yardstick(file: Path, base: MapSpec, cells: tuple[Cell, ...]) -> None:
    """All variants are measured as the base says, or their figures mean different things."""
    for cell in cells:
        for key in ("assess", "legend"):
            if getattr(cell.spec, key) != getattr(base, key):
                raise SpecError(
                    f"{file}: variant {cell.variant} has another `{key}` than the base; "
                    "variants are compared on the same reference samples: change it in the base"
                )
        held, wanted = (spec.chips.size * spec.chips.block for spec in (cell.spec, base))
        if held != wanted and base.assessment.reference.region == "validation":
            raise SpecError(
                f"{file}: variant {cell.variant} holds out blocks of {held} pixels (chips.size x "
                f"chips.block), the base of {wanted}; variants are compared on ground that all "
                "held out: change chips.block with chips.size, or both in the base"
            )


def _parsed(data: Mapping[str, Any], *, where: str) -> MapSpec:
    return parse_spec(yaml.safe_dump(dict(data), sort_keys=False), where=where)


def _mapping(file: Path) -> Mapping[str, Any]:
    try:
        data = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"{file}: cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise SpecError(
            f"{file}: neither a spec nor a comparison, which are YAML mappings; a comparison has "
            "the keys base and variants (or search)"
        )
    return data
