"""gate: promote or refuse, with the reasons. It fails closed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from terrafine.accuracy import decide
from terrafine.stages.assess import EVIDENCE
from terrafine.stages.engine import Job, Manifest, Outcome, Stage, read_json


def _work(job: Job, folder: Path, needed: Mapping[str, Manifest]) -> Outcome:
    assessed = needed["assess"]
    evidence = read_json(job.output(assessed, "evidence"), EVIDENCE)
    decision = decide(job.spec.gate, evidence)
    (folder / "decision.json").write_text(decision.model_dump_json(indent=2))
    (folder / "verdict.md").write_text(decision.to_markdown())
    return Outcome(
        {"decision": Path("decision.json"), "verdict": Path("verdict.md")},
        {
            "decision": "promote" if decision.passed else "refuse",
            "model": assessed.metrics["model"],
        },
    )


GATE = Stage(name="gate", needs=("assess",), sections=("gate",), work=_work)
