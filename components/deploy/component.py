"""The deploy stage as a KFP component."""

from kfp.dsl import Artifact, Input, Metrics, Output

from components.base import component


@component
def deploy(
    spec: str,
    data: str,
    workdir: str,
    exported: Input[Artifact],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Make the exported release the champion of the model servers, if its canary passes there.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        exported: Manifest of the export.
        manifest: What the stage made, from what, and its figures.
        metrics: The stage's figures.
    """
    from components.stage import numbers, run_stage

    done = run_stage("deploy", spec, data, workdir, [exported.path], manifest.path)
    for name, value in numbers(done).items():
        metrics.log_metric(name, value)
