"""From imagery and a coarse label product to a served model and a released land-cover map."""

from kfp import dsl

from components.deploy.component import deploy
from components.export.component import export
from components.map.component import map_scenes
from components.publish.component import publish
from pipelines.cluster import DEPLOYS, LAUNCHES, WORKS, on_cluster
from pipelines.steps import DATA, WORKDIR, begun, manifest, refused, taught_and_judged
from terrafine.spec import AS_IN_SPEC


@dsl.pipeline(
    name="national-map",
    description="Teach a high-resolution network from a coarse product, prove it, serve it, and "
    "map with it.",
)
def national_map(
    spec: str = "/work/specs/national-map.yaml",
    data: str = DATA,
    workdir: str = WORKDIR,
    region: str = AS_IN_SPEC,
    release: str = AS_IN_SPEC,
) -> None:
    """Prepare, label, train twice, prune, assess, gate; then export, deploy, map, publish.

    Where the gate refuses the model the last four do not run, and a report says why.

    Args:
        spec: The spec of the map: its YAML text, or the path of a .yaml file on the shared volume.
        data: Folder on the shared volume that the paths in the spec start from.
        workdir: Folder that takes all results; {name} stands for the name in the spec.
        region: File of polygons under the data folder; only shards that touch one are mapped.
        release: Name that readers of the map store will see, for instance china-2026.
    """
    run = begun(spec, data, workdir, region=region, release=release)
    judged = taught_and_judged(run)
    # If without Else would skip silently when the condition cannot be read.
    with dsl.If(judged.decision == "promote"):
        exported = manifest(export(**run, pruned=judged.pruned, gated=judged.gated), WORKS)
        deployed = on_cluster(deploy(**run, exported=exported), DEPLOYS)
        # a map by model servers needs the new model there
        mapped = manifest(map_scenes(**run, exported=exported).after(deployed), LAUNCHES)
        on_cluster(publish(**run, mapped=mapped), WORKS)
    with dsl.Else():
        refused(run, judged)
