"""From imagery and a coarse label product to a released land-cover map."""

from kfp import dsl

from components.assess.component import assess
from components.export.component import export
from components.filter.component import filter_chips
from components.gate.component import decision, gate
from components.label.component import label
from components.map.component import map_scenes
from components.publish.component import publish, refuse
from components.train.component import train, train_preliminary


@dsl.pipeline(
    name="land-cover-map",
    description="Teach a high-resolution network from a coarse product, prove it, map with it.",
)
def land_cover_map(spec: str, data: str, workdir: str) -> None:
    """Label, train, filter, train again, assess, gate; then export, map, publish, or refuse.

    Args:
        spec: The whole run, as the YAML text of a MapSpec (`terrafine spec schema`).
        data: Folder that the spec's relative paths start from; every step must see it.
        workdir: Folder that takes all results; every step must see it.
    """
    run = {"spec": spec, "data": data, "workdir": workdir}
    chips = label(**run).outputs["manifest"]
    preliminary = train_preliminary(**run, chips=chips).outputs["manifest"]
    filtered = filter_chips(**run, chips=chips, preliminary=preliminary).outputs["manifest"]
    trained = train(**run, chips=chips, filtered=filtered).outputs["manifest"]
    assessed = assess(**run, chips=chips, trained=trained).outputs["manifest"]
    gated = gate(**run, assessed=assessed).outputs["manifest"]
    decided = decision(gated=gated)
    # If without Else would skip silently when the condition cannot be read.
    with dsl.If(decided.output == "promote"):
        exported = export(**run, trained=trained, gated=gated).outputs["manifest"]
        mapped = map_scenes(**run, exported=exported).outputs["manifest"]
        publish(**run, mapped=mapped)
    with dsl.Else():
        refuse(**run, gated=gated)
