"""What the cells of a comparison reached.

The seeds that every measured variant finished are pooled: the ground of another one may be harder.
A block of pixels (or a point) that several of them held out is one unit of the bootstrap, since it
says nothing new each time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, TypeAdapter

import terrafine
from terrafine.accuracy import AccuracyReport, PairedComparison
from terrafine.comparison.held_out import PRODUCT, Ground, Pair, Zones, pooled
from terrafine.comparison.plan import Plan
from terrafine.comparison.run import CellOutcome
from terrafine.export import read_info
from terrafine.models import describe_spec
from terrafine.spec import Region
from terrafine.stages import Job
from terrafine.stages.assess import paired, report
from terrafine.stages.engine import read_json
from terrafine.training import EpochRecord

# a training has one curve, a pruning one for each of its two
_Curves = list[EpochRecord] | dict[str, list[EpochRecord]]
_CURVES: TypeAdapter[_Curves] = TypeAdapter(_Curves)


class Frozen(BaseModel):
    """Base of everything a comparison is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(Frozen):
    """What a variant's network costs, as :func:`terrafine.models.describe` counts it.

    A pruned one's, once it is pruned: how many filters go does not depend on the seed.
    """

    arch: str
    parameters: int
    macs_per_pixel: int
    receptive_field: int


class Row(Frozen):
    """One variant.

    ``report``, ``against_product`` and ``against_first``: of the comparison's pooled seeds
    together; ``at_edges``: of the pixels beside an edge of a raster reference;
    ``accuracy_by_seed``: overall accuracy of each seed that it finished, and
    ``over_first_by_seed`` what it is above the first variant's;
    ``models``: seed -> digest of the model; ``seconds_per_megapixel``: of inference, where it was
    measured; ``train_seconds`` (with those of its pruning) and ``preliminary_seconds``: of the
    epochs of its trainings, means over the seeds it finished; ``errors``: seed -> why a cell came
    to nothing.
    """

    variant: str
    network: Network
    report: AccuracyReport | None
    at_edges: AccuracyReport | None
    against_product: PairedComparison | None
    against_first: PairedComparison | None
    accuracy_by_seed: dict[int, float | None]
    over_first_by_seed: dict[int, float | None]
    models: dict[int, str]
    train_seconds: float | None
    preliminary_seconds: float | None
    errors: dict[int, str]
    seconds_per_megapixel: float | None = None


class Comparison(Frozen):
    """All variants of a comparison; ``product``: the base's label product on their samples, and
    ``product_at_edges`` on those of them beside an edge; ``region``: the base's, of the reference;
    ``pooled_seeds``: those that every variant finished that finished any.
    """

    name: str
    base: str
    terrafine: str
    seeds: tuple[int, ...]
    pooled_seeds: tuple[int, ...]
    region: Region
    product: AccuracyReport | None
    product_at_edges: AccuracyReport | None
    rows: tuple[Row, ...]

    @property
    def failed(self) -> bool:
        """Whether any cell came to nothing."""
        return any(row.errors for row in self.rows)


@dataclass(frozen=True)
class _Pools:
    """Samples of each pair of maps, seed by seed; those of seeds in ``together`` are pooled."""

    by_pair: Mapping[Pair, Mapping[int, Zones]]
    together: Collection[int]
    job: Job
    """of the base"""

    def seeds(self, pair: Pair) -> Mapping[int, Zones]:
        return self.by_pair.get(pair, {})

    def zones(self, pair: Pair) -> list[Zones]:
        return [zones for seed, zones in self.seeds(pair).items() if seed in self.together]

    def report(self, pair: Pair) -> AccuracyReport | None:
        zones = self.zones(pair)
        return report(self.job, pooled(zones), pair[0]) if zones else None

    def report_of_other(self, pair: Pair) -> AccuracyReport | None:
        zones = self.zones(pair)
        return report(self.job, pooled(zones).of_other(), pair[1]) if zones else None

    def paired(self, pair: Pair) -> PairedComparison | None:
        zones = self.zones(pair)
        return paired(self.job, pooled(zones), *pair) if zones else None

    def accuracy_by_seed(self, pair: Pair) -> dict[int, float | None]:
        return {
            seed: report(self.job, pooled([zones]), pair[0]).overall_accuracy.value
            for seed, zones in self.seeds(pair).items()
        }

    def difference_by_seed(self, pair: Pair) -> dict[int, float | None]:
        return {
            seed: paired(self.job, pooled([zones]), *pair).difference.value
            for seed, zones in self.seeds(pair).items()
        }


def measure(plan: Plan, outcomes: Sequence[CellOutcome]) -> Comparison:
    """Compare what the cells wrote down; nothing is trained or mapped.

    A cell that was assessed at no place where those before it were counts as failed.
    """
    first, base = plan.variants[0], replace(outcomes[0].job, spec=plan.base)
    grounds = {}
    for seed in plan.seeds:
        done = [o for o in outcomes if o.cell.seed == seed and o.error is None]
        if done:
            grounds[seed] = Ground.of(base, done)
    outcomes = [_apart(o, grounds) for o in outcomes]
    mapped = {seed: {m.name for m in ground.maps} for seed, ground in grounds.items()}
    measured = [v for v in plan.variants if any(v in names for names in mapped.values())]
    together = tuple(seed for seed, names in mapped.items() if names.issuperset(measured))
    pools, edges = (
        _pools(base, grounds, first, together, near_edges=near) for near in (False, True)
    )
    return Comparison(
        name=plan.name,
        base=plan.base.name,
        terrafine=terrafine.__version__,
        seeds=plan.seeds,
        pooled_seeds=together,
        region=plan.base.assessment.reference.region,
        product=pools.report_of_other((measured[0], PRODUCT)) if measured else None,
        product_at_edges=edges.report_of_other((measured[0], PRODUCT)) if measured else None,
        rows=tuple(
            _row([o for o in outcomes if o.cell.variant == variant], pools, edges, first)
            for variant in plan.variants
        ),
    )


def _apart(outcome: CellOutcome, grounds: Mapping[int, Ground]) -> CellOutcome:
    """The cell, failed where it has no ground in common with the others of its seed."""
    if outcome.error is not None:
        return outcome
    return replace(outcome, error=grounds[outcome.cell.seed].apart.get(outcome.cell.variant))


def _pools(
    base: Job,
    grounds: Mapping[int, Ground],
    first: str,
    together: Collection[int],
    *,
    near_edges: bool,
) -> _Pools:
    by_pair: dict[Pair, dict[int, Zones]] = {}
    for seed, ground in grounds.items():
        for pair, zones in ground.pairs(first, near_edges=near_edges).items():
            by_pair.setdefault(pair, {})[seed] = zones
    return _Pools(by_pair, together, base)


def _row(outcomes: Sequence[CellOutcome], pools: _Pools, edges: _Pools, first: str) -> Row:
    cell = outcomes[0].cell
    with_product = (cell.variant, PRODUCT)
    done = [o for o in outcomes if o.error is None]
    return Row(
        variant=cell.variant,
        network=_network((done or outcomes)[0]),
        report=pools.report(with_product),
        at_edges=edges.report(with_product),
        against_product=pools.paired(with_product),
        against_first=pools.paired((cell.variant, first)),
        accuracy_by_seed=pools.accuracy_by_seed(with_product),
        over_first_by_seed=pools.difference_by_seed((cell.variant, first)),
        models={o.cell.seed: str(o.stages["assess"].metrics["model"]) for o in done},
        train_seconds=_mean([_seconds(o, "train") + _seconds(o, "prune") for o in done]),
        preliminary_seconds=_mean([_seconds(o, "train-preliminary") for o in done]),
        errors={o.cell.seed: o.error for o in outcomes if o.error is not None},
    )


def _network(outcome: CellOutcome) -> Network:
    spec, pruned = outcome.cell.spec, outcome.stages.get("prune")
    bundle = read_info(outcome.job.output(pruned, "model")) if pruned else None
    found = describe_spec(
        spec.model,
        bands=len(spec.imagery.bands),
        classes=len(spec.resolve_legend().classes),
        channels=bundle.channels if bundle else None,
    )
    return Network(**{key: found[key] for key in Network.model_fields})


def _seconds(outcome: CellOutcome, stage: str) -> float:
    """Of all epochs; the manifest's are only those since a killed training went on."""
    manifest = outcome.stages[stage]
    if "history" not in manifest.outputs:
        return 0.0  # a network that is not pruned
    found = read_json(outcome.job.output(manifest, "history"), _CURVES)
    curves = found.values() if isinstance(found, dict) else [found]
    return sum(epoch.seconds for curve in curves for epoch in curve)


def _mean(seconds: Sequence[float]) -> float | None:
    return sum(seconds) / len(seconds) if seconds else None
