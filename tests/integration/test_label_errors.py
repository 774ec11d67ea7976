"""How the label product errs, estimated by the filter stage, counts in the training after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from terrafine.errors import StageError
from terrafine.stages import ENGINE, Job
from terrafine.stages.fit import TrainingTask, fit
from terrafine.training import TrainingResult
from tests.scenes import SPECTRA, Project


def job_of(project: Project, **changes: object) -> Job:
    return replace(Job.open(project.spec, data=None, workdir=project.root / "run"), **changes)


def test_the_estimate_counts_in_the_training_after_the_filter(project: Project) -> None:
    tasks: list[TrainingTask] = []

    def watched(task: TrainingTask) -> TrainingResult:
        tasks.append(task)
        return fit(task)

    project.change_spec(
        training={"label_confusion": "estimated", "epochs": 1, "preliminary_epochs": 6},
        model={"arch": "unet_w8"},
        prune={"ratio": 0.2, "epochs": 1, "fine_tune_epochs": 0},
    )
    job = job_of(project, trainer=watched)
    for stage in ("label", "train-preliminary", "filter", "train", "prune"):
        ENGINE.run(job, stage)
    assert [task.heading for task in tasks] == ["train preliminary", "train", "prune"]
    assert tasks[0].confusion is None, "before it is known, labels are taken at their word"
    found = np.array(tasks[1].confusion)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    here = job.spec.resolve_legend().index_table[list(SPECTRA)]
    # four of five blocks are right, and the others are of any class
    assert (found[here, here] > 0.6).all()
    assert found[here, here].mean() < 0.97
    assert tasks[2].confusion == tasks[1].confusion


def test_an_estimate_that_was_cut_off_is_named(project: Project) -> None:
    project.change_spec(
        training={"label_confusion": "estimated", "preliminary_epochs": 1},
        model={"arch": "unet_w4"},
    )
    job = job_of(project)
    for stage in ("label", "train-preliminary", "filter"):
        manifest = ENGINE.run(job, stage)
    file = job.output(manifest, "confusion")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(StageError, match=r"confusion\.json: cannot be read back.*delete it"):
        ENGINE.run(job, "train")
