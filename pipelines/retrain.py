"""From imagery and a coarse label product to a new champion on the model servers; no map."""

from kfp import dsl

from components.deploy.component import deploy
from components.export.component import export
from pipelines.cluster import DEPLOYS, WORKS, on_cluster
from pipelines.steps import DATA, WORKDIR, begun, manifest, refused, taught_and_judged


@dsl.pipeline(
    name="retrain",
    description="Teach a network anew, and make it the champion if it passes its gate.",
)
def retrain(
    spec: str = "/work/specs/retrain.yaml",
    data: str = DATA,
    workdir: str = WORKDIR,
) -> None:
    """Prepare, label, train twice, prune, assess, gate; then export and deploy.

    Where the gate refuses the model the champion stays, and a report says why.

    Args:
        spec: The spec of the run: its YAML text, or the path of a .yaml file on the shared volume.
        data: Folder on the shared volume that the paths in the spec start from.
        workdir: Folder that takes all results; {name} stands for the name in the spec.
    """
    run = begun(spec, data, workdir)
    judged = taught_and_judged(run)
    # If without Else would skip silently when the condition cannot be read.
    with dsl.If(judged.decision == "promote"):
        exported = manifest(export(**run, pruned=judged.pruned, gated=judged.gated), WORKS)
        on_cluster(deploy(**run, exported=exported), DEPLOYS)
    with dsl.Else():
        refused(run, judged)
