"""Every component: small, of one image, described, and right when its body is run as it stands."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from kfp import dsl
from kfp.dsl.types.type_annotations import is_Input_Output_artifact_annotation

from components.base import IMAGE
from serving.triton.repository import ModelRepository
from terrafine.stages import ENGINE
from tests.scenes import Project, make_project
from tests.triton import SERVE, lifecycle, running_triton

FOLDERS = sorted(
    path.parent for path in (Path(__file__).parents[2] / "components").glob("*/component.py")
)
LONGEST_BODY = 15
LARGEST_REPORT = 3_000_000


def components_in(folder: Path) -> dict[str, Any]:
    """Name -> component of a folder's component.py."""
    module = import_module(f"components.{folder.name}.component")
    return {
        name: found
        for name, found in vars(module).items()
        if hasattr(found, "python_func") and found.python_func.__module__ == module.__name__
    }


COMPONENTS = {name: found for folder in FOLDERS for name, found in components_in(folder).items()}
folders = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
components = pytest.mark.parametrize("name", COMPONENTS)


def test_every_stage_has_a_component() -> None:
    bodies = " ".join(inspect.getsource(found.python_func) for found in COMPONENTS.values())
    said = set(re.findall(r'run_stage\(\s*"([a-z-]+)"', bodies))
    assert said == set(ENGINE.stages)


@folders
def test_a_folder_holds_a_component_and_a_readme_that_names_it(folder: Path) -> None:
    assert components_in(folder)
    readme = (folder / "README.md").read_text()
    assert readme.startswith(f"# {folder.name}\n")
    for name in components_in(folder):
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", readme), f"{name} is not in its README"
    for test in re.findall(r"`(tests/[^`]+)`", readme):
        assert (folder.parents[1] / test).exists(), f"{test} is not there"


@folders
def test_only_the_standard_library_and_kfp_are_imported_at_module_level(folder: Path) -> None:
    tree = ast.parse((folder / "component.py").read_text())
    imported = {
        name
        for node in tree.body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    foreign = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in foreign - {"components.base"}} <= {"kfp"}


@components
def test_a_body_parses_calls_and_logs(name: str) -> None:
    (function,) = ast.parse(inspect.getsource(COMPONENTS[name].python_func)).body
    assert isinstance(function, ast.FunctionDef)
    _, *body = function.body  # after the docstring
    lines = {line for node in body for line in range(node.lineno, node.end_lineno + 1)}  # type: ignore[operator]
    assert len(lines) <= LONGEST_BODY


@components
def test_a_component_runs_in_the_one_image_and_installs_nothing(name: str) -> None:
    container = COMPONENTS[name].component_spec.implementation.container
    assert container.image == IMAGE
    assert "pip install" not in " ".join(map(str, container.command))


@components
def test_every_parameter_is_described(name: str) -> None:
    function = COMPONENTS[name].python_func
    described = set(re.findall(r"^ {8}(\w+): \S", inspect.getdoc(function) or "", re.M))
    described |= set(re.findall(r"^ {4}(\w+): \S", inspect.getdoc(function) or "", re.M))
    assert set(inspect.signature(function).parameters) == described


# the bodies, run one after the other as KFP would run them

CHAIN: Mapping[str, Mapping[str, str]] = {
    "label": {},
    "train_preliminary": {"chips": "label"},
    "filter_chips": {"chips": "label", "preliminary": "train_preliminary"},
    "train": {"chips": "label", "filtered": "filter_chips"},
    "prune": {"chips": "label", "filtered": "filter_chips", "trained": "train"},
    "assess": {"chips": "label", "pruned": "prune"},
    "gate": {"assessed": "assess"},
    "export": {"pruned": "prune", "gated": "gate"},
    "deploy": {"exported": "export"},
    "map_scenes": {"exported": "export"},
    "publish": {"mapped": "map_scenes"},
    "refuse": {"gated": "gate"},
}


@dataclass
class Walk:
    """A project, and what each component left: name of the output -> artifact."""

    project: Project
    folder: Path
    left: dict[str, dict[str, Any]]

    @property
    def workdir(self) -> Path:
        return self.folder / "run"

    def run(self, name: str, *, into: str = "") -> dict[str, Any]:
        """Call a component's body with artifacts as KFP hands them over."""
        given = {key: self.left[source]["manifest"] for key, source in CHAIN[name].items()}
        function = COMPONENTS[name].python_func
        outputs = {}
        for key, hint in get_type_hints(function, include_extras=True).items():
            if is_Input_Output_artifact_annotation(hint) and key not in given:
                path = self.folder / "artifacts" / (into or name) / key
                path.parent.mkdir(parents=True, exist_ok=True)
                outputs[key] = hint.__origin__(name=key, uri=str(path))
        function(
            spec=self.project.spec.read_text(),
            data=str(self.project.root),
            workdir=str(self.workdir),
            **given,
            **outputs,
        )
        return outputs


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    folder = tmp_path_factory.mktemp("components")
    walk = Walk(make_project(folder), folder, {})
    training = {"epochs": 2, "preliminary_epochs": 1, "crops_per_chip": 1}
    walk.project.change_spec(training=training, model={"arch": "unet_w4"})
    for name in CHAIN:
        walk.left[name] = walk.run(name)
    return walk


def text_of(artifact: dsl.Artifact) -> str:
    return Path(artifact.path).read_text()


def test_every_body_leaves_its_manifest(walk: Walk) -> None:
    for name, left in walk.left.items():
        manifest = json.loads(text_of(left["manifest"]))
        assert f'"{manifest["stage"]}"' in inspect.getsource(COMPONENTS[name].python_func)


def test_scalars_are_there_to_be_compared(walk: Walk) -> None:
    for name, left in walk.left.items():
        if "metrics" in left:
            manifest = json.loads(text_of(left["manifest"]))["metrics"]
            numbers = {k: v for k, v in manifest.items() if not isinstance(v, str)}
            assert left["metrics"].metadata == pytest.approx(numbers), name


def test_both_confusion_matrices_are_shown(walk: Walk) -> None:
    for output, report in (("confusion", "map"), ("product_confusion", "product")):
        shown = walk.left["assess"][output].metadata["confusionMatrix"]
        known = json.loads((walk.workdir / f"assess/latest/{report}.json").read_text())
        assert [one["displayName"] for one in shown["annotationSpecs"]] == [
            row["name"] for row in known["classes"]
        ]
        assert [row["row"] for row in shown["rows"]] == known["matrix"]
        assert sum(map(sum, known["matrix"])) > 0


def test_the_verdict_and_the_accuracy_can_be_read(walk: Walk) -> None:
    assert "## Gate" in text_of(walk.left["gate"]["verdict"])
    assert "| " in text_of(walk.left["assess"]["summary"])


@pytest.mark.parametrize("name", ["publish", "refuse"])
def test_the_report_is_one_small_page_that_fetches_nothing(walk: Walk, name: str) -> None:
    page = text_of(walk.left[name]["report"])
    assert len(page) < LARGEST_REPORT
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)


def test_a_run_without_model_servers_says_that_nothing_is_deployed(walk: Walk) -> None:
    figures = json.loads(text_of(walk.left["deploy"]["manifest"]))["metrics"]
    assert figures["deployed"] == "no"
    assert "serve.server" in figures["why"]


@pytest.mark.slow
def test_the_exported_release_becomes_champion_once_and_a_rollback_is_not_overruled(
    walk: Walk, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    before = walk.project.spec.read_text()
    with running_triton(repository, load=[SERVE.name], folder=tmp_path / "triton") as server:
        serve = {"server": server.grpc_url, "repository": str(repository), "threads": 1}
        walk.project.change_spec(serve=serve)
        try:
            first = json.loads(text_of(walk.run("deploy", into="served")["manifest"]))["metrics"]
            exported = json.loads(text_of(walk.left["export"]["manifest"]))["metrics"]
            assert (first["deployed"], first["version"], first["servers"]) == ("yes", 1, 1)
            assert first["release"] == exported["release"]
            assert first["class_agreement"] >= SERVE.canary_class_agreement - 0.001
            # where its manifest was lost, the champion is found and left alone
            for done in (walk.workdir / "deploy").glob("*/manifest.json"):
                done.unlink()
            walk.run("deploy", into="served")
            with lifecycle(server) as versions:
                found = versions.status()
                assert found.healthy
                assert found.champion is not None
                assert found.champion.version == 1
            assert len(ModelRepository(str(repository), SERVE.name).history().events) == 1
        finally:
            walk.project.spec.write_text(before)
    assert yaml.safe_load(before).get("serve") is None
