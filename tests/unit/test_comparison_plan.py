"""Which specs a comparison runs, checked before any is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from affine import Affine

from terrafine.comparison import Cell, paper_matrix, read_plan, run_cells
from terrafine.errors import AccuracyError, SpecError
from terrafine.spec import load_spec, parse_spec
from terrafine.stages import Job, Manifest
from tests.scenes import SPEC, TRANSFORM, make_project, write_raster


class Nobody:
    """Watches nothing, and must not be told of a cell."""

    def cell(self, cell: Cell, number: int, total: int) -> None:
        raise AssertionError(f"{cell} was run")

    def stage(self, manifest: Manifest, *, was_done: bool) -> None:
        """No cell, no stage."""

    def failed(self, error: str) -> None:
        """No cell, no failure."""


def spec_file(folder: Path, **changes: Any) -> Path:
    # the recipe that changes no default
    (folder / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "recipe": "dong2020", **changes}))
    return folder / "spec.yaml"


def comparison_file(folder: Path, **keys: Any) -> Path:
    spec_file(folder)
    text = yaml.safe_dump({"base": "spec.yaml", **keys}, sort_keys=False)
    (folder / "nets.yaml").write_text(text)
    return folder / "nets.yaml"


def test_a_variant_is_the_base_with_its_own_keys_over_it(tmp_path: Path) -> None:
    plan = read_plan(
        comparison_file(
            tmp_path,
            seeds=[3, 5],
            variants={
                "plain": None,
                "light": {"training": {"class_weights": {"water": 2.0}, "epochs": 2}},
            },
        )
    )
    assert [str(cell) for cell in plan.cells] == [
        "plain, seed 3", "light, seed 3", "plain, seed 5", "light, seed 5",
    ]  # fmt: skip
    base = load_spec(tmp_path / "spec.yaml")
    light = plan.cells[1].spec
    assert plan.cells[0].spec == base.model_copy(update={"seed": 3})
    assert (light.training.epochs, light.training.batch) == (2, base.training.batch)
    assert light.training.class_weights == {"water": 2.0}, "the default is no key of the file"
    assert light.digest("imagery", "model", "map") == base.digest("imagery", "model", "map")


def test_an_ordinary_spec_gives_the_papers_comparisons_one_factor_at_a_time(tmp_path: Path) -> None:
    model = {"arch": "hrnet_w24", "first_norm": "instance"}
    plan = read_plan(spec_file(tmp_path, model=model, filter={"min_agreement": 0.2}))
    base, *others = plan.cells
    assert base.variant == "base"
    assert base.spec == load_spec(tmp_path / "spec.yaml")
    changed = {
        cell.variant: {
            f"{section}.{key}": value
            for section, values in cell.spec.model_dump().items()
            if isinstance(values, dict)
            for key, value in values.items()
            if value != base.spec.model_dump()[section][key]
        }
        for cell in others
    }
    assert changed == {
        "unet-w64": {"model.arch": "unet_w64"},
        "fcdensenet64-k12": {"model.arch": "fcdensenet64_k12"},
        "batch-norm": {"model.first_norm": "batch"},
        "impervious-weight-1": {"training.class_weights": {"impervious": 1.0}},
        "no-filter": {"filter.min_agreement": 0.0},
    }


def test_the_matrix_around_another_base_turns_each_factor_the_other_way() -> None:
    spec = {
        **SPEC,
        "recipe": "dong2020",
        "model": {"arch": "unet_w16", "first_norm": "batch"},
        "training": {**SPEC["training"], "class_weights": {"impervious": 1.0}},
        "filter": {"min_agreement": 0.0},
    }
    matrix = paper_matrix(parse_spec(yaml.safe_dump(spec), where="spec"))
    assert matrix == {
        "base": {},
        "hrnet-w6": {"model": {"arch": "hrnet_w6"}},
        "fcdensenet64-k3": {"model": {"arch": "fcdensenet64_k3"}},
        "instance-norm": {"model": {"first_norm": "instance"}},
        "impervious-weight-3": {"training": {"class_weights": {"impervious": 3.0}}},
        "filter": {"filter": {"min_agreement": 0.2}},
    }


def test_a_variant_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = comparison_file(tmp_path, variants={"a": None})
    file.write_text("base: spec.yaml\nvariants:\n  a: {seed: 1}\n  a: {seed: 2}\n")
    with pytest.raises(SpecError, match=r"nets\.yaml: .*key 'a' is there twice"):
        read_plan(file)


def test_combinations_of_a_search_that_read_alike_are_refused(tmp_path: Path) -> None:
    options = {"first": {"x": None, "x-y": None}, "second": {"y-z": None, "z": None}}
    with pytest.raises(SpecError, match="two combinations of options are both x-y-z; rename one"):
        read_plan(comparison_file(tmp_path, search=options))


def test_a_base_with_both_norms_first_is_compared_with_either_alone() -> None:
    spec = {**SPEC, "model": {"arch": "unet_w16", "first_norm": "instance-batch"}}
    matrix = paper_matrix(parse_spec(yaml.safe_dump(spec), where="spec"))
    norms = {name: change for name, change in matrix.items() if name.endswith("-norm")}
    assert norms == {
        "instance-norm": {"model": {"first_norm": "instance"}},
        "batch-norm": {"model": {"first_norm": "batch"}},
    }


def test_a_search_combines_every_option_of_each_axis_with_every_one_of_the_others(
    tmp_path: Path,
) -> None:
    pruned = {"prune": {"ratio": 0.5, "stage_ratios": {"stem": 0.25}}}
    plan = read_plan(
        comparison_file(
            tmp_path,
            within=0.3,
            search={
                "strides": {
                    "half": {"model": {"arch": "hrnet_w2", "stem_strides": [2, 1]}},
                    "quarter": {"model": {"arch": "hrnet_w2", "stem_strides": [2, 2]}},
                },
                "pruning": {"whole": None, "half-pruned": pruned},
            },
        )
    )
    assert plan.within == 0.3
    assert {
        cell.variant: (cell.spec.model.stem_strides, cell.spec.prune.ratio) for cell in plan.cells
    } == {
        "half-whole": ((2, 1), 0.0),
        "half-half-pruned": ((2, 1), 0.5),
        "quarter-whole": ((2, 2), 0.0),
        "quarter-half-pruned": ((2, 2), 0.5),
    }
    assert plan.cells[-1].spec.prune.stage_ratios == {"stem": 0.25}


def test_the_search_around_a_spec_varies_strides_and_pruning_at_equal_epochs(
    tmp_path: Path,
) -> None:
    hrnet = spec_file(
        tmp_path,
        model={"arch": "hrnet_w24"},
        training={**SPEC["training"], "epochs": 9},
        prune={"epochs": 2, "fine_tune_epochs": 4},
    )
    plan = read_plan(hrnet, search=True)
    assert plan.name == "spec-search", "the paper's matrix around the same spec keeps its results"
    first, *_ = plan.cells
    assert (first.variant, first.spec.model.stem_strides) == ("half-whole", (2, 1))
    assert [cell.variant for cell in plan.cells] == [
        "half-whole", "half-even", "half-late", "half-later",
        "quarter-whole", "quarter-even", "quarter-late", "quarter-later",
    ]  # fmt: skip
    for cell in plan.cells:
        prune = cell.spec.prune
        pruning = prune.epochs + prune.fine_tune_epochs if prune.active else 0
        assert cell.spec.training.epochs + pruning == 9 + 2 + 4, cell.variant
        assert prune.active == (not cell.variant.endswith("whole"))
        assert not prune.active or (prune.coupled and prune.round_to == 8)

    unet = read_plan(spec_file(tmp_path, model={"arch": "unet_w16"}), search=True)
    assert [cell.variant for cell in unet.cells] == ["whole", "even"], "strides are HRNet's"


def test_a_search_is_refused_where_it_would_overrule_or_be_overruled(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"the search sets prune\.ratio"):
        read_plan(spec_file(tmp_path, prune={"ratio": 0.3}), search=True)
    with pytest.raises(SpecError, match="is a comparison already"):
        read_plan(comparison_file(tmp_path, variants={"a": {}}), search=True)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"variants": {"a": {}}, "search": {"x": {"b": {}}}}, "give either variants or search"),
        ({"search": {}}, "search"),
        ({"search": {"x": {}}}, "search"),
        ({"search": {"x": {"b": {"model": {"arhc": "y"}}}}}, "variant b: unknown key 'model.arhc'"),
        ({"variants": {"a": {}}, "within": -1}, "within"),
        ({"variants": {"a": {"model": {"arhc": "x"}}}}, r"variant a: unknown key 'model.arhc'"),
        ({"variants": {"a": {"model": {"arch": "vgg"}}}}, r"variant a: model.arch"),
        ({"variants": {}}, "variants"),
        ({"variants": {"A b": {}}}, "variants"),
        ({"variants": {"a": {}}, "seedz": [1]}, "unknown key 'seedz' .*seeds"),
        ({"variants": {"a": {}}, "seeds": [1, 1]}, "one is named twice"),
        ({"variants": {"a": {"seed": 2}}}, "seed is set by `seeds`"),
        ({"variants": {"a": {}, "b": {"assess": {"unit": 8}}}}, "variant b has another `assess`"),
        (
            {"variants": {"a": {"assess": {"unit": 8}}}},
            "variant a has another `assess` than the base",
        ),
        ({"variants": {"a": {"chips": {"block": 3}}}}, "holds out blocks of 96 pixels .* of 32"),
        ({"variants": {"a": {}}, "base": "../spec.yaml"}, "leaves the data root"),
        ({"variants": {"a": {}}, "base": "gone.yaml"}, r"gone\.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        read_plan(comparison_file(tmp_path, **keys))
    assert "\n" not in str(caught.value)


LATE: dict[str, Any] = {"ratio": 0.4, "stage_ratios": {"stem": 0.1, "stage3": 0.6}}


@pytest.mark.parametrize(
    ("prune", "names"),
    [
        ({"stage_ratios": {"stem": None}}, "prune.stage_ratios: 'stage3'"),
        (
            {"stage_ratios": {"stem": None, "stage3": None}, "exclude": ["hed"]},
            "prune.exclude: 'hed'",
        ),
    ],
)
def test_a_pruning_of_parts_that_a_variant_has_not_is_refused_before_anything_is_trained(
    tmp_path: Path, prune: dict[str, Any], names: str
) -> None:
    unet = {"model": {"arch": "unet_w4"}, "prune": prune}
    file = comparison_file(tmp_path, variants={"a": {}, "unet": unet})
    spec_file(tmp_path, model={"arch": "hrnet_w2"}, prune=LATE)
    with pytest.raises(
        SpecError,
        match=rf"nets\.yaml: variant unet: {names} fits no layer.*name parts of unet_w4.*to null",
    ):
        read_plan(file)


def test_a_variant_takes_a_part_out_of_the_bases_pruning(tmp_path: Path) -> None:
    ratios = {"stem": None, "stage3": None, "down": 0.2}
    unet = {"model": {"arch": "unet_w4"}, "prune": {"stage_ratios": ratios}}
    file = comparison_file(tmp_path, variants={"a": {}, "unet": unet})
    spec_file(tmp_path, model={"arch": "hrnet_w2"}, prune=LATE)
    whole, pruned = (cell.spec.prune for cell in read_plan(file).cells)
    assert whole.stage_ratios == LATE["stage_ratios"]
    assert (pruned.ratio, pruned.stage_ratios) == (0.4, {"down": 0.2})


def test_a_pruning_that_takes_nothing_may_name_any_part(tmp_path: Path) -> None:
    whole = {"prune": {"exclude": ["stage3"]}}
    plan = read_plan(comparison_file(tmp_path, variants={"a": {}, "whole": whole}))
    assert plan.cells[-1].spec.prune.exclude == ("stage3",)


def test_the_papers_other_networks_are_pruned_where_they_have_the_parts(tmp_path: Path) -> None:
    ratios = {**LATE["stage_ratios"], "*.1.*": 0.3}
    prune = {"ratio": 0.4, "stage_ratios": ratios, "exclude": ["*.0.*", "head"]}
    plan = read_plan(spec_file(tmp_path, model={"arch": "hrnet_w2"}, prune=prune))
    pruned = {cell.variant: cell.spec.prune for cell in plan.cells}
    for same in ("base", "batch-norm"):
        assert pruned[same].stage_ratios == ratios
        assert pruned[same].exclude == ("*.0.*", "head")
    for other in ("unet-w5", "fcdensenet64-k1"):
        assert pruned[other].stage_ratios == {"*.1.*": 0.3}
        assert pruned[other].exclude == ("*.0.*",)
        assert pruned[other].ratio == 0.4


def test_chips_of_another_size_that_hold_out_the_same_blocks_are_compared(tmp_path: Path) -> None:
    smaller = {"chips": {"size": 16, "block": 2}, "training": {"crop": 16}}
    plan = read_plan(comparison_file(tmp_path, variants={"a": {}, "smaller": smaller}))
    assert plan.variants == ("a", "smaller")


def test_imagery_on_another_grid_is_refused_before_any_cell_is_run(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    off = TRANSFORM @ Affine.translation(0.5, 0)
    write_raster(tmp_path / "off.tif", project.image_CHW, nodata=0, transform=off)
    scenes = {"imagery": {"scenes": [{"name": "off", "files": ["off.tif"]}]}}
    other_bands = {"imagery": {"bands": ["red", "green", "blue"]}}
    keys = {"base": "spec.yaml", "variants": {"a": {}, "rgb": other_bands, "off": scenes}}
    (tmp_path / "nets.yaml").write_text(yaml.safe_dump(keys, sort_keys=False))
    plan = read_plan(tmp_path / "nets.yaml")
    with pytest.raises(AccuracyError, match="imagery of variant off lies on another grid"):
        run_cells(plan, lambda spec: Job(spec, tmp_path, tmp_path / "run"), Nobody())
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_neither_spec_nor_comparison_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(SpecError, match="neither a spec nor a comparison"):
        read_plan(tmp_path / "list.yaml")
