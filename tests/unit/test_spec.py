"""The spec: the paper's defaults, and one clear sentence for everything that is wrong in one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from terrafine.errors import LegendError, SpecError
from terrafine.legend import SEVEN
from terrafine.spec import (
    DATA_VARIABLE,
    LabelSource,
    MapSpec,
    data_root,
    load_spec,
    parse_spec,
    resolve_in,
)

EXAMPLES = Path(__file__).parents[2] / "examples"

LEAST: dict[str, Any] = {
    "name": "least",
    "imagery": {"scenes": [{"name": "a", "files": ["a.tif"]}]},
    "labels": {"file": "l.tif"},
    "assess": {"reference": {"file": "r.gpkg"}},
}


def parse(**changes: Any) -> MapSpec:
    return parse_spec(yaml.safe_dump({**LEAST, **changes}), where="spec.yaml")


def refusal(**changes: Any) -> str:
    with pytest.raises(SpecError) as error:
        parse(**changes)
    assert "\n" not in str(error.value), "one sentence"
    return str(error.value)


def test_what_the_papers_recipe_does_not_say_is_as_in_the_paper() -> None:
    spec = parse(recipe="dong2020")
    assert spec.resolve_legend() is SEVEN
    assert spec.imagery.bands == ("red", "green", "blue", "nir")
    assert spec.labels.crosswalk == "FROM-GLC10"
    assert (spec.chips.size, spec.chips.validation_fraction) == (1024, 0.02)
    assert spec.filter.min_agreement == 0.20
    assert (spec.model.arch, spec.model.stem_strides) == ("hrnet_w24", (2, 1))
    assert spec.model.first_norm == "instance"
    training = spec.training
    assert (training.epochs, training.batch, training.crop) == (120, 32, 513)
    assert (training.learning_rate, training.momentum) == (0.01, 0.9)
    assert spec.class_weights() == (1, 1, 1, 1, 3, 1, 1)
    enhance = spec.map.enhance
    assert (enhance.block, enhance.gain, enhance.loss) == (512, 2.0, 0.5)
    assert spec.map.window == 1024 + 2 * 128


@pytest.mark.parametrize("name", ["north-carolina", "zion"])
def test_the_examples_are_specs(name: str) -> None:
    spec = load_spec(EXAMPLES / f"{name}.yaml")
    assert spec.name == name
    assert spec.publish.notes, "the reader is told what the figures mean"


@pytest.mark.parametrize(
    ("changes", "wrong", "right"),
    [
        ({"trainin": {}}, "'trainin'", "'training'"),
        ({"training": {"epoch": 3}}, "'training.epoch'", "'epochs'"),
        ({"map": {"enhance": {"blok": 64}}}, "'map.enhance.blok'", "'block'"),
        (
            {"imagery": {"scenes": [{"name": "a", "file": ["a.tif"]}]}},
            "'imagery.scenes.0.file'",
            "'files'",
        ),
        ({"assess": {"reference": {"file": "r", "colunm": "x"}}}, "colunm", "'class_column'"),
    ],
)
def test_a_typo_is_named_with_the_right_key(
    changes: dict[str, Any], wrong: str, right: str
) -> None:
    message = refusal(**changes)
    assert message.startswith("spec.yaml: ")
    assert "unknown key" in message
    assert wrong in message
    assert f"did you mean {right}" in message


def test_a_key_like_no_other_gets_the_list_of_keys() -> None:
    assert "known here: min_agreement" in refusal(filter={"zzz": 1})


def test_a_missing_key_is_named() -> None:
    assert "key 'labels.file' is missing" in refusal(labels={})


def test_a_spec_teaches_a_model_or_names_one() -> None:
    least = {key: LEAST[key] for key in ("name", "imagery")}

    def parsed(**more: Any) -> MapSpec:
        return parse_spec(yaml.safe_dump({**least, **more}), where="spec.yaml")

    assert parsed(champion="releases/2026").labels is None
    for more in ({}, {"assess": LEAST["assess"]}):
        with pytest.raises(SpecError, match=r"'labels'.* missing: .*\(`champion`\)"):
            parsed(**more)
    with pytest.raises(SpecError, match="holds graphs and no weights"):
        parsed(champion="releases/2026", map={"predictor": "torch"})
    with pytest.raises(SpecError, match="leaves the data root"):
        parsed(champion="../releases/2026")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chips": {"size": 100}}, r"chips\.size: 100 is not a power of two"),
        ({"chips": {"size": 64}, "training": {"crop": 65}}, r"crop 65 is larger .* 64"),
        ({"map": {"core": 2048, "shard": 1024}}, r"core 2048 is larger than shard 1024"),
        ({"map": {"predictor": "triton"}}, "the server is given for predictor triton"),
        ({"map": {"server": "grpc://a:1"}}, "predictor onnx with server grpc://a:1"),
        ({"map": {"halo": 3}}, r"core \+ 2 halo = 1030 must be a multiple of 16"),
        ({"gate": {"min_users_accuracy": {"watr": 0.5}}}, r"'watr' \(did you mean 'water'\?\)"),
        ({"training": {"class_weights": {"road": 3}}}, r"class_weights: .* no class 'road'"),
        ({"legend": "sevn"}, r"legend 'sevn' is unknown; known: seven, fbp"),
        ({"labels": {"file": "l.tif", "crosswalk": "NCLD"}}, r"'NCLD' .*did you mean 'NLCD'"),
        ({"labels": {"file": "../l.tif"}}, r"leaves the data root"),
        ({"labels": {"file": "/l.tif"}}, r"leaves the data root"),
        ({"name": "Two Words"}, r"name: "),
        ({"training": {"epochs": "many"}}, r"training\.epochs: .*\(got 'many'\)"),
        (
            {"imagery": {"scenes": [{"name": "a", "files": ["a"]}, {"name": "a", "files": ["b"]}]}},
            r"two scenes share a name",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    assert re.search(said, refusal(**changes))


def test_a_crosswalk_in_the_spec_names_classes_or_codes() -> None:
    source = LabelSource(file="l.tif", crosswalk={11: "water", 21: 0, 82: 1}, nodata=255)
    walk = source.resolve_crosswalk(SEVEN)
    assert dict(walk.mapping) == {11: 4, 21: 0, 82: 1}
    assert walk.nodata == 255
    with pytest.raises(LegendError, match="no class 'sea'"):
        LabelSource(file="l.tif", crosswalk={11: "sea"}).resolve_crosswalk(SEVEN)
    message = refusal(labels={"file": "l.tif", "crosswalk": {11: "sea"}})
    assert message.startswith("spec.yaml: ")
    assert "no class 'sea'" in message
    assert "sends code 11 to class 99" in refusal(labels={"file": "l.tif", "crosswalk": {11: 99}})


def test_a_legend_in_the_spec_replaces_the_seven() -> None:
    classes = [
        {"code": 10, "name": "land", "color": "#00ff00"},
        {"code": 20, "name": "sea", "color": "#0000ff"},
    ]
    crosswalk = {1: "land", 2: "sea"}
    spec = parse(
        legend={"name": "two", "classes": classes},
        labels={"file": "l.tif", "crosswalk": crosswalk},
        assess={"reference": {"file": "r.tif", "crosswalk": crosswalk}},
    )
    assert spec.resolve_legend().codes == (10, 20)
    assert spec.class_weights() == (1, 1)
    message = refusal(legend={"name": "two", "classes": classes})
    assert "crosswalk 'FROM-GLC10'" in message
    assert "legend 'two' does not have" in message


@pytest.mark.parametrize("recipe", ["dong2020", "terrafine"])
def test_a_spec_with_a_legend_of_its_own_reads_the_same_written_out(recipe: str) -> None:
    """The paper's weight on impervious is nobody's error where there is no such class."""
    classes = [{"code": 1, "name": "land", "color": "#00ff00"},
               {"code": 2, "name": "sea", "color": "#0000ff"}]  # fmt: skip
    crosswalk = {1: "land", 2: "sea"}
    spec = parse(
        recipe=recipe,
        legend={"name": "two", "classes": classes},
        labels={"file": "l.tif", "crosswalk": crosswalk},
        assess={"reference": {"file": "r.tif", "crosswalk": crosswalk}},
        training={"label_confusion": None},
    )
    again = parse_spec(spec.to_yaml(), where="written out")
    assert again == spec
    assert again.digest() == spec.digest()


def test_a_key_that_is_there_twice_is_refused_with_its_place() -> None:
    text = yaml.safe_dump(LEAST) + "training:\n  epochs: 5\n  batch: 2\n  epochs: 9\n"
    with pytest.raises(SpecError, match=r"spec\.yaml: .*key 'epochs' is there twice.* line"):
        parse_spec(text, where="spec.yaml")


def test_keys_may_come_from_an_anchor_and_be_replaced() -> None:
    text = yaml.safe_dump(LEAST) + "export: {<<: {opset: 18}, opset: 19}\n"
    assert parse_spec(text, where="spec").export.opset == 19


def test_what_is_no_spec_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not valid YAML"):
        parse_spec("a: [1", where="spec.yaml")
    with pytest.raises(SpecError, match="a spec is a YAML mapping"):
        parse_spec("- a", where="spec.yaml")
    with pytest.raises(SpecError, match=r"gone\.yaml: the spec cannot be read: No such file"):
        load_spec(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_spec(tmp_path / "binary.yaml")


def test_a_spec_written_out_reads_back_the_same() -> None:
    spec = parse(training={"epochs": 7})
    again = parse_spec(spec.to_yaml(), where="again")
    assert again == spec
    assert again.digest() == spec.digest()


def test_a_digest_covers_the_sections_it_names() -> None:
    spec, other = parse(), parse(training={"epochs": 7})
    assert spec.digest() != other.digest()
    assert spec.digest("chips", "labels") == other.digest("chips", "labels")
    assert spec.digest("training") != other.digest("training")
    assert spec.digest("seed") != parse(seed=1).digest("seed")


def test_the_data_root_is_the_option_then_the_variable_then_the_specs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("option", "variable", "spec"):
        (tmp_path / name).mkdir()
    spec_file = tmp_path / "spec" / "spec.yaml"
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    assert data_root(spec_file) == tmp_path / "spec"
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "variable"))
    assert data_root(spec_file) == tmp_path / "variable"
    assert data_root(spec_file, tmp_path / "option") == tmp_path / "option"
    with pytest.raises(SpecError, match=r"gone: the data root is no folder"):
        data_root(spec_file, tmp_path / "gone")


def test_a_link_out_of_the_data_root_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "inside.tif").touch()
    (tmp_path / "outside.tif").touch()
    (root / "link.tif").symlink_to(tmp_path / "outside.tif")
    assert resolve_in(root, "inside.tif") == root / "inside.tif"
    with pytest.raises(SpecError, match=r"'link\.tif' leads out of the data root"):
        resolve_in(root, "link.tif")


def test_the_engine_that_infers_is_part_of_the_maps_identity_and_the_machine_is_not() -> None:
    spec = MapSpec.model_validate(LEAST)

    def digest(**settings: object) -> str:
        changed = spec.map.model_copy(update=settings)
        return spec.model_copy(update={"map": changed}).digest("map")

    machine = {"workers": 8, "server": "grpc://a:1", "storage": "s3://b", "metrics_port": 9000}
    assert digest(**machine) == digest()
    assert digest(predictor="openvino") != digest()
