"""The export stage as a KFP component."""

from kfp.dsl import Artifact, Input, Metrics, Output

from components.base import component


@component
def export(
    spec: str,
    data: str,
    workdir: str,
    pruned: Input[Artifact],
    gated: Input[Artifact],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Write the ONNX graph of a model that passed its gate, checked against torch.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        pruned: Manifest of the prune stage.
        gated: Manifest of the gate.
        manifest: What the stage made, from what, and its figures.
        metrics: The stage's figures.
    """
    from components.stage import numbers, run_stage

    done = run_stage("export", spec, data, workdir, [pruned.path, gated.path], manifest.path)
    for name, value in numbers(done).items():
        metrics.log_metric(name, value)
