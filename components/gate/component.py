"""The gate stage as a KFP component."""

from kfp.dsl import Artifact, Input, Markdown, Output

from components.base import component


@component
def gate(
    spec: str,
    data: str,
    workdir: str,
    assessed: Input[Artifact],
    manifest: Output[Artifact],
    verdict: Output[Markdown],
) -> None:
    """Promote or refuse the model, with the reasons.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        assessed: Manifest of the assessment.
        manifest: What the stage made, from what, and its figures.
        verdict: The verdict, rule by rule.
    """
    import shutil

    from components.stage import output, run_stage

    done = run_stage("gate", spec, data, workdir, [assessed.path], manifest.path)
    shutil.copyfile(output(done, workdir, "verdict"), verdict.path)


@component
def decision(gated: Input[Artifact]) -> str:
    """Read the gate's decision for the pipeline's branch: "promote" or "refuse".

    A component of its own because a condition on one of several outputs is skipped silently.

    Args:
        gated: Manifest of the gate.
    """
    import json
    from pathlib import Path

    passed = json.loads(Path(gated.path).read_text())["metrics"]["decision"] == "promote"
    return "promote" if passed else "refuse"
