"""The train stage as a KFP component."""

from kfp.dsl import Artifact, Input, Metrics, Output

from components.base import component


@component
def train_preliminary(
    spec: str,
    data: str,
    workdir: str,
    chips: Input[Artifact],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Train the preliminary model on every training chip.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        chips: Manifest of the label stage.
        manifest: What the stage made, from what, and its figures.
        metrics: The stage's figures.
    """
    from components.stage import numbers, run_stage

    done = run_stage("train-preliminary", spec, data, workdir, [chips.path], manifest.path)
    for name, value in numbers(done).items():
        metrics.log_metric(name, value)


@component
def train(
    spec: str,
    data: str,
    workdir: str,
    chips: Input[Artifact],
    filtered: Input[Artifact],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Train the final model on the chips that were kept.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        chips: Manifest of the label stage.
        filtered: Manifest of the filter stage.
        manifest: What the stage made, from what, and its figures.
        metrics: The stage's figures.
    """
    from components.stage import numbers, run_stage

    done = run_stage("train", spec, data, workdir, [chips.path, filtered.path], manifest.path)
    for name, value in numbers(done).items():
        metrics.log_metric(name, value)
