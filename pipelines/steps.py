"""The steps that several pipelines share, wired to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineArtifactChannel

from components.assess.component import assess
from components.filter.component import filter_chips
from components.gate.component import decision, gate
from components.label.component import label
from components.prepare.component import prepare
from components.prune.component import prune
from components.publish.component import refuse
from components.train.component import train, train_preliminary
from pipelines.cluster import ASKS, INFERS, LAUNCHES, READS, WORKS, Size, on_cluster
from terrafine.spec import AS_IN_SPEC

DATA = "/work/data"
WORKDIR = "/work/runs/{name}"

Run = dict[str, Any]


def manifest(task: dsl.PipelineTask, size: Size) -> PipelineArtifactChannel:
    """What a step hands on."""
    return on_cluster(task, size).outputs["manifest"]


def begun(
    spec: str,
    data: str,
    workdir: str,
    *,
    champion: str = AS_IN_SPEC,
    region: str = AS_IN_SPEC,
    release: str = AS_IN_SPEC,
) -> Run:
    """What every step is given, once the spec has been found to fit the data."""
    ready = on_cluster(
        prepare(
            spec=spec, data=data, workdir=workdir,
            champion=champion, region=region, release=release,
        ),
        ASKS,
    )  # fmt: skip
    return {"spec": ready.outputs["spec"], "data": data, "workdir": ready.outputs["workdir"]}


@dataclass(frozen=True)
class Judged:
    """A model, the gate's manifest, and its decision as a condition can read it."""

    pruned: PipelineArtifactChannel
    gated: PipelineArtifactChannel
    decision: Any


def taught_and_judged(run: Run) -> Judged:
    """From imagery and label product to the gate's decision."""
    chips = manifest(label(**run), WORKS)
    preliminary = manifest(train_preliminary(**run, chips=chips), LAUNCHES)
    filtered = manifest(filter_chips(**run, chips=chips, preliminary=preliminary), INFERS)
    trained = manifest(train(**run, chips=chips, filtered=filtered), LAUNCHES)
    pruned = manifest(prune(**run, chips=chips, filtered=filtered, trained=trained), LAUNCHES)
    assessed = manifest(assess(**run, chips=chips, pruned=pruned), INFERS)
    gated = manifest(gate(**run, assessed=assessed), ASKS)
    return Judged(pruned, gated, on_cluster(decision(gated=gated), ASKS).output)


def refused(run: Run, judged: Judged) -> None:
    """The other end: a report that says why."""
    on_cluster(refuse(**run, gated=judged.gated), READS)
