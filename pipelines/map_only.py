"""From a champion and a region to a released map; nothing is trained."""

from kfp import dsl

from components.adopt.component import adopt
from components.map.component import map_scenes
from components.publish.component import publish
from pipelines.cluster import LAUNCHES, READS, WORKS, on_cluster
from pipelines.steps import DATA, WORKDIR, begun, manifest
from terrafine.spec import AS_IN_SPEC


@dsl.pipeline(
    name="map-only",
    description="Map a region with a released model, and release the map.",
)
def map_only(
    spec: str = "/work/specs/map-only.yaml",
    data: str = DATA,
    workdir: str = WORKDIR,
    champion: str = AS_IN_SPEC,
    region: str = AS_IN_SPEC,
    release: str = AS_IN_SPEC,
) -> None:
    """Prepare, adopt, map, publish.

    Args:
        spec: The spec of the map: its YAML text, or the path of a .yaml file on the shared volume.
        data: Folder on the shared volume that the paths in the spec start from.
        workdir: Folder that takes all results; {name} stands for the name in the spec.
        champion: Released model to map with: folder under the data folder, or s3://bucket/folder.
        region: File of polygons under the data folder; only shards that touch one are mapped.
        release: Name that readers of the map store will see, for instance china-2026.
    """
    run = begun(spec, data, workdir, champion=champion, region=region, release=release)
    adopted = manifest(adopt(**run), READS)
    mapped = manifest(map_scenes(**run, exported=adopted), LAUNCHES)
    on_cluster(publish(**run, mapped=mapped), WORKS)
