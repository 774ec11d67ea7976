"""Running the cells of a comparison, each as the pipeline runs a spec, up to its assessment.

All share one work directory, so that what two cells have in common is done once, and a comparison
that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from terrafine.comparison.plan import Cell, Plan
from terrafine.errors import AccuracyError, TerrafineError, explain
from terrafine.raster import open_mosaics
from terrafine.spec import MapSpec
from terrafine.stages import ENGINE, Job, Manifest

LAST = "assess"

OpenJob = Callable[[MapSpec], Job]


@dataclass(frozen=True)
class CellOutcome:
    """A cell that was run: its job, and the manifest of each stage, or what went wrong."""

    cell: Cell
    job: Job
    stages: Mapping[str, Manifest]
    error: str | None = None


class Watch(Protocol):
    """Someone who is told how a comparison gets on."""

    def cell(self, cell: Cell, number: int, total: int) -> None:
        """A cell begins, the ``number``-th of ``total``."""

    def stage(self, manifest: Manifest, *, was_done: bool) -> None:
        """A stage of it is done, now or long since."""

    def failed(self, error: str) -> None:
        """The cell came to nothing; the next one begins."""


def stages_of(job: Job) -> tuple[str, ...]:
    """What a cell runs, in order."""
    return tuple(ENGINE.digests(job, LAST))


def stages_done(job: Job) -> dict[str, bool]:
    """Stage -> whether it need not be run."""
    return {name: ENGINE.find(job, name) is not None for name in stages_of(job)}


def run_cells(plan: Plan, open_job: OpenJob, watch: Watch) -> list[CellOutcome]:
    """Run every cell; one that fails is reported and the others go on.

    AccuracyError before any is run where the imagery of a variant lies on another grid.
    """
    _require_one_grid(plan, open_job)
    outcomes = []
    for number, cell in enumerate(plan.cells, 1):
        watch.cell(cell, number, len(plan.cells))
        outcome = _run_cell(cell, open_job(cell.spec), watch)
        if outcome.error is not None:
            watch.failed(outcome.error)
        outcomes.append(outcome)
    return outcomes


def _require_one_grid(plan: Plan, open_job: OpenJob) -> None:
    """A variant may have other bands than the base, but not other pixels."""
    specs = {
        cell.variant: cell.spec for cell in plan.cells if cell.spec.imagery != plan.base.imagery
    }
    base = open_job(plan.base)
    for variant, spec in specs.items():
        own, wanted = (
            {zone: m.grid for zone, m in open_mosaics(imagery, base.data).items()}
            for imagery in (spec.imagery, plan.base.imagery)
        )
        if own != wanted:
            raise AccuracyError(
                f"{plan.name}: the imagery of variant {variant} lies on another grid than the "
                "base's, so that they have no samples in common; compare variants of the same "
                "scenes"
            )


def _run_cell(cell: Cell, job: Job, watch: Watch) -> CellOutcome:
    done: dict[str, Manifest] = {}
    try:
        for name in stages_of(job):
            was_done = ENGINE.find(job, name) is not None
            done[name] = ENGINE.run(job, name)
            watch.stage(done[name], was_done=was_done)
    except (TerrafineError, OSError) as error:
        return CellOutcome(cell, job, done, explain(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        reason = (str(error).splitlines() or ["MemoryError"])[0]
        return CellOutcome(
            cell, job, done,
            f"{cell.spec.model.arch}: out of memory ({reason}); lower training.micro_batch or "
            "training.crop",
        )  # fmt: skip
    return CellOutcome(cell, job, done)
