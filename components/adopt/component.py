"""The adopt stage as a KFP component."""

from kfp.dsl import Artifact, Metrics, Output

from components.base import component


@component
def adopt(
    spec: str,
    data: str,
    workdir: str,
    manifest: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Take over the released model that the spec names as champion, checked file by file.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        manifest: What the stage made, from what, and its figures.
        metrics: The stage's figures.
    """
    from components.stage import numbers, run_stage

    done = run_stage("adopt", spec, data, workdir, [], manifest.path)
    for name, value in numbers(done).items():
        metrics.log_metric(name, value)
