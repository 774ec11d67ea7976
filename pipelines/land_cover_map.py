"""From imagery and a coarse label product to a released land-cover map."""

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineArtifactChannel

from components.assess.component import assess
from components.export.component import export
from components.filter.component import filter_chips
from components.gate.component import decision, gate
from components.label.component import label
from components.map.component import map_scenes
from components.prune.component import prune
from components.publish.component import publish, refuse
from components.train.component import train, train_preliminary


def _always(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """KFP's cache knows paths, not what lies there; the stages' own digests decide instead."""
    return task.set_caching_options(False)


def _manifest(task: dsl.PipelineTask) -> PipelineArtifactChannel:
    return _always(task).outputs["manifest"]


@dsl.pipeline(
    name="land-cover-map",
    description="Teach a high-resolution network from a coarse product, prove it, map with it.",
)
def land_cover_map(spec: str, data: str, workdir: str) -> None:
    """Label, train, filter, train again, prune, assess, gate; then export, map, publish, or refuse.

    Args:
        spec: The whole run, as the YAML text of a MapSpec (`terrafine spec schema`).
        data: Folder that the spec's relative paths start from; every step must see it.
        workdir: Folder that takes all results; every step must see it.
    """
    run = {"spec": spec, "data": data, "workdir": workdir}
    chips = _manifest(label(**run))
    preliminary = _manifest(train_preliminary(**run, chips=chips))
    filtered = _manifest(filter_chips(**run, chips=chips, preliminary=preliminary))
    trained = _manifest(train(**run, chips=chips, filtered=filtered))
    pruned = _manifest(prune(**run, chips=chips, filtered=filtered, trained=trained))
    assessed = _manifest(assess(**run, chips=chips, pruned=pruned))
    gated = _manifest(gate(**run, assessed=assessed))
    decided = _always(decision(gated=gated))
    # If without Else would skip silently when the condition cannot be read.
    with dsl.If(decided.output == "promote"):
        exported = _manifest(export(**run, pruned=pruned, gated=gated))
        mapped = _manifest(map_scenes(**run, exported=exported))
        _always(publish(**run, mapped=mapped))
    with dsl.Else():
        _always(refuse(**run, gated=gated))
