"""The prune stage as a KFP component."""

from kfp.dsl import Artifact, Input, Metrics, Output

from components.base import component


@component
def prune(
    spec: str,
    data: str,
    workdir: str,
    chips: Input[Artifact],
    filtered: Input[Artifact],
    trained: Input[Artifact],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Make the trained model smaller, or hand it on as it is.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        chips: Manifest of the label stage.
        filtered: Manifest of the filter stage.
        trained: Manifest of the training.
        manifest: What the stage made, from what, and its figures.
        metrics: The stage's figures.
    """
    from components.stage import numbers, run_stage

    upstream = [chips.path, filtered.path, trained.path]
    done = run_stage("prune", spec, data, workdir, upstream, manifest.path)
    for name, value in numbers(done).items():
        metrics.log_metric(name, value)
