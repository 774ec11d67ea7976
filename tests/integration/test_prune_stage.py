"""The prune stage: what is judged and exported is the smaller network, whatever kills it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from serving.engines import on_engines
from serving.ray_cluster import connected
from terrafine.chips import open_chips
from terrafine.cli.main import app
from terrafine.errors import TerrafineError
from terrafine.export import load_bundle, read_info, save_bundle
from terrafine.models import RawModel, build_network
from terrafine.pruning import PruningRecord
from terrafine.spec import ModelSpec
from terrafine.stages import ENGINE, Job, Manifest
from terrafine.stages.fit import TrainingTask, fit
from terrafine.stages.label import chips_place
from terrafine.training import TrainingResult
from tests.scenes import Project, make_project

PRUNE = {"ratio": 0.4, "coupled": True, "epochs": 2, "fine_tune_epochs": 2, "learning_rate": 0.02}
UP_TO_TRAIN = ("label", "train-preliminary", "filter", "train")


def job_of(project: Project) -> Job:
    return Job.open(project.spec, data=None, workdir=project.root / "run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose model is trained; tests work on copies."""
    project = make_project(tmp_path_factory.mktemp("trained"))
    project.change_spec(
        training={"epochs": 3, "preliminary_epochs": 1, "crops_per_chip": 1},
        filter={"min_agreement": 0.0},
        gate={"min_overall_accuracy": 0.0},
        model={"arch": "unet_w4"},
        prune=PRUNE,
    )
    for name in UP_TO_TRAIN:
        ENGINE.run(job_of(project), name)
    return project


def copy_of(project: Project, folder: Path) -> Project:
    shutil.copytree(project.root, folder / "copy", symlinks=True)
    return Project(folder / "copy", project.truth_HW, project.image_CHW)


@pytest.fixture(scope="module")
def pruned(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Manifest]:
    job = job_of(copy_of(trained, tmp_path_factory.mktemp("pruned")))
    return job, ENGINE.run(job, "prune")


def test_the_bundle_is_a_smaller_network_that_names_its_parent(
    pruned: tuple[Job, Manifest],
) -> None:
    job, done = pruned
    model, info = load_bundle(job.output(done, "model"))
    whole, parent = load_bundle(job.output(ENGINE.run(job, "train"), "model"))
    assert info.channels
    assert info.provenance["pruned_from"] == parent.digest
    assert (info.mean, info.std, info.model) == (parent.mean, parent.std, parent.model)
    count = sum(p.numel() for p in model.parameters())
    assert count == done.metrics["parameters"] < 0.6 * sum(p.numel() for p in whole.parameters())
    image = torch.from_numpy(np.full((1, 4, 64, 64), 900, np.uint16))
    assert model(image).shape == whole(image).shape


def test_the_record_says_for_every_layer_what_went_and_why(pruned: tuple[Job, Manifest]) -> None:
    job, done = pruned
    record = PruningRecord.model_validate_json(job.output(done, "pruning").read_bytes())
    model, info = load_bundle(job.output(done, "model"))
    layers = {layer.layer: layer for layer in record.layers}
    for name, layer in layers.items():
        assert model.network.get_submodule(name).out_channels == layer.left
        assert layer.before - layer.removed == layer.left
        assert layer.filters is not None
        assert len(set(layer.filters)) == layer.removed
    assert layers["classifier"].why == "makes a class of the output"
    assert layers["down.0.0"].why == "ratio 0.4"
    assert len({layer.group for layer in record.layers}) == len(layers)
    assert set(record.agreement) == {"trained", "zeroed", "compact"}
    assert record.fewer_macs > 0.4
    assert record.parent == info.provenance["pruned_from"]


def test_the_record_of_a_run_that_named_no_filters_can_still_be_read(
    pruned: tuple[Job, Manifest],
) -> None:
    job, done = pruned
    said = json.loads(job.output(done, "pruning").read_text())
    del said["worse_tuning"]
    for layer in said["layers"]:
        del layer["filters"]
    record = PruningRecord.model_validate_json(json.dumps(said))
    assert record.removed == done.metrics["removed_filters"]
    assert {layer.which for layer in record.layers} == {""}


def test_model_info_describes_what_is_left(pruned: tuple[Job, Manifest]) -> None:
    job, done = pruned
    shown = CliRunner().invoke(
        app, ["model", "info", "--bundle", str(job.output(done, "model")), "--json"]
    )
    found = json.loads(shown.stdout)
    assert found["parameters"] == done.metrics["parameters"]
    assert found["pruned_layers"] > 20


def test_what_is_judged_is_the_pruned_model(pruned: tuple[Job, Manifest]) -> None:
    job, done = pruned
    digest = read_info(job.output(done, "model")).digest
    assert ENGINE.run(job, "assess").metrics["model"] == digest
    assert ENGINE.run(job, "gate").metrics["model"] == digest


def test_without_a_ratio_the_trained_model_is_handed_on_untouched(
    trained: Project, tmp_path: Path
) -> None:
    project = copy_of(trained, tmp_path)
    project.change_spec(prune={"ratio": 0.0})

    def nobody(task: TrainingTask) -> TrainingResult:
        raise AssertionError("nothing is trained")

    job = replace(job_of(project), trainer=nobody)
    done = ENGINE.run(job, "prune")
    bundle = job.output(done, "model")
    assert bundle == job.output(ENGINE.run(job, "train"), "model")
    assert done.seconds < 1
    assert read_info(bundle).channels == {}


class Killed(Exception):
    """The process is gone."""


@pytest.mark.parametrize("phase", ["prune", "fine-tune"])
def test_a_killed_pruning_goes_on_and_ends_as_if_it_had_not_been(
    trained: Project, pruned: tuple[Job, Manifest], tmp_path: Path, phase: str
) -> None:
    project = copy_of(trained, tmp_path)
    epochs: list[tuple[str, int]] = []

    def killed(task: TrainingTask) -> TrainingResult:
        result = fit(task)
        if task.heading == phase:
            raise Killed
        return result

    def counted(task: TrainingTask) -> TrainingResult:
        steps = Path(task.storage, "steps.csv")
        epochs.append((task.heading, steps.stat().st_mtime_ns if steps.exists() else 0))
        return fit(task)

    with pytest.raises(Killed):
        ENGINE.run(replace(job_of(project), trainer=killed), "prune")
    assert ENGINE.find(job_of(project), "prune") is None
    job = replace(job_of(project), trainer=counted)
    done = ENGINE.run(job, "prune")
    assert epochs[0][1] > 0, "it found what was trained before"
    again, first = (
        read_info(job.output(done, "model")),
        read_info(pruned[0].output(pruned[1], "model")),
    )
    assert again.digest == first.digest
    assert not list((project.root / "run" / "prune").rglob("*.pt")), "checkpoints are cleared"


def test_without_fine_tuning_the_compact_network_agrees_as_the_zeroed_one(
    trained: Project, tmp_path: Path
) -> None:
    project = copy_of(trained, tmp_path)
    project.change_spec(prune={"fine_tune_epochs": 0})
    job = job_of(project)
    record = record_of(job)
    assert record.agreement["compact"] == record.agreement["zeroed"]
    assert agreement_of(job) == pytest.approx(record.agreement["zeroed"], abs=1e-3)


def test_a_fine_tuning_that_makes_the_network_worse_is_not_handed_on_and_told(
    trained: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoiled(task: TrainingTask) -> TrainingResult:
        result = fit(task)
        if task.heading != "fine-tune":
            return result
        worse = tuple(
            epoch.model_copy(update={"validation_agreement": 0.0}) for epoch in result.history
        )
        nothing = {name: 0 * weight for name, weight in result.best_state.items()}
        return replace(result, history=worse, best_state=nothing)

    job = replace(job_of(copy_of(trained, tmp_path)), trainer=spoiled)
    record = record_of(job)
    assert record.worse_tuning == 0.0
    assert record.agreement["compact"] == record.agreement["zeroed"] > 0.1
    assert agreement_of(job) == pytest.approx(record.agreement["zeroed"], abs=1e-3)
    assert "fine-tuning left a network that agrees with 0.00% of the validation" in caplog.text


def record_of(job: Job) -> PruningRecord:
    done = ENGINE.run(job, "prune")
    return PruningRecord.model_validate_json(job.output(done, "pruning").read_bytes())


def agreement_of(job: Job) -> float:
    """Share of the validation chips' pixels on which the pruned bundle says the product's class."""
    model, info = load_bundle(job.output(ENGINE.run(job, "prune"), "model"))
    store = open_chips(chips_place(job, ENGINE.run(job, "label")))
    right = counted = 0
    for index in store.indexes("validation").tolist():
        image = torch.from_numpy(store.image(index)[None])
        label = store.label(index)
        codes = info.legend.code_table[model(image)[0].argmax(0).numpy()]
        seen = (label > 0) & model.valid(image)[0].numpy()
        right, counted = right + int((codes == label)[seen].sum()), counted + int(seen.sum())
    return right / counted


@pytest.mark.slow
def test_two_ray_workers_prune_alike_and_take_the_same_number(
    trained: Project, pruned: tuple[Job, Manifest], tmp_path: Path
) -> None:
    project = copy_of(trained, tmp_path)
    project.change_spec(training={"workers": 2, "device": "cpu"})
    # one Ray for both trainings
    with connected(cpus=2):
        done = ENGINE.run(on_engines(job_of(project)), "prune")
    alone = pruned[1]
    assert done.digest == alone.digest, "the number of workers is the machine's business"
    assert done.metrics["parameters"] == alone.metrics["parameters"]
    load_bundle(job_of(project).output(done, "model"))


def test_a_model_of_another_network_is_not_pruned(trained: Project, tmp_path: Path) -> None:
    project = copy_of(trained, tmp_path)
    bundle = job_of(project).output(ENGINE.run(job_of(project), "train"), "model")
    model, info = load_bundle(bundle)
    other = ModelSpec(arch="hrnet_w4")
    network = build_network(other, bands=4, classes=7)
    save_bundle(bundle, RawModel(model.raw, network), info.model_copy(update={"model": other}))
    with pytest.raises(TerrafineError, match=r"its network .*hrnet_w4.* is not the spec's"):
        ENGINE.run(job_of(project), "prune")


@pytest.mark.parametrize(
    ("prune", "says"),
    [
        ({"ratio": 1.0}, "prune.ratio"),
        ({"ratio": -0.1}, "prune.ratio"),
        ({"stage_ratios": {"stage4": 1.5}}, "prune.stage_ratios"),
        ({"exclude": ["doun"]}, "'doun' fits no layer"),
    ],
)
def test_a_pruning_that_cannot_be_is_told_before_anything_is_trained(
    trained: Project, tmp_path: Path, prune: dict[str, object], says: str
) -> None:
    project = copy_of(trained, tmp_path)
    project.change_spec(prune=prune)
    with pytest.raises(TerrafineError, match=says):
        ENGINE.run(job_of(project), "prune")
    assert not list((project.root / "run").glob("prune/*/*.json"))


def test_history_has_both_phases(pruned: tuple[Job, Manifest]) -> None:
    job, done = pruned
    history = json.loads(job.output(done, "history").read_text())
    assert [len(history[phase]) for phase in ("zeroed", "compact")] == [2, 2]
