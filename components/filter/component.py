"""The filter stage as a KFP component."""

from kfp.dsl import Artifact, Input, Metrics, Output

from components.base import component


@component
def filter_chips(
    spec: str,
    data: str,
    workdir: str,
    chips: Input[Artifact],
    preliminary: Input[Artifact],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Drop the chips on which preliminary model and label product hardly agree.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        chips: Manifest of the label stage.
        preliminary: Manifest of the preliminary training.
        manifest: What the stage made, from what, and its figures.
        metrics: The stage's figures.
    """
    from components.stage import numbers, run_stage

    done = run_stage("filter", spec, data, workdir, [chips.path, preliminary.path], manifest.path)
    for name, value in numbers(done).items():
        metrics.log_metric(name, value)
