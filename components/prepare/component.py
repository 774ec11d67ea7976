"""The first step of every pipeline as a KFP component."""

from typing import NamedTuple

from components.base import component


@component
def prepare(
    spec: str,
    data: str,
    workdir: str,
    champion: str,
    region: str,
    release: str,
) -> NamedTuple("Prepared", [("spec", str), ("workdir", str)]):  # type: ignore[valid-type]
    """Read the spec, put in what the form says, and check it against the data.

    Args:
        spec: The YAML text of a MapSpec, or the path of a file that holds it.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results; {name} stands for the spec's name.
        champion: Folder or URL of the released model to map with, or "as in the spec".
        region: File of polygons to map, under the data folder, or "as in the spec".
        release: Name of the map release, or "as in the spec".

    Returns:
        The spec as YAML text with every default written out, and the work directory.
    """
    from terrafine.stages import ENGINE
    from terrafine.stages.prepare import prepared

    job = prepared(
        ENGINE,
        spec,
        data=data,
        workdir=workdir,
        overrides={"champion": champion, "map.region": region, "publish.release": release},
    )
    return (job.spec.to_yaml(), str(job.workdir))
