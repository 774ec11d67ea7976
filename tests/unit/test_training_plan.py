"""How crops are shared out: every crop once, no worker idle, none with too many at once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from terrafine.training.group import Group
from terrafine.training.plan import EpochPlan


@st.composite
def plans(draw: st.DrawFn) -> EpochPlan:
    batch = draw(st.integers(1, 40))
    return EpochPlan(
        crops=draw(st.integers(1, 120)),
        batch=batch,
        workers=draw(st.integers(1, min(batch, 17))),
        micro_batch=draw(st.none() | st.integers(1, 9)),
    )


def groups(plan: EpochPlan) -> list[Group]:
    return [Group(rank, plan.workers) for rank in range(plan.workers)]


@given(plans())
def test_steps_are_the_same_for_any_number_of_workers(plan: EpochPlan) -> None:
    positions = [position for step in range(plan.steps) for position in plan.positions(step)]
    assert positions == list(range(plan.crops))
    assert {len(plan.positions(step)) for step in range(plan.steps - 1)} <= {plan.batch}


@given(plans())
def test_rounds_of_a_step_hold_every_crop_once_and_differ_by_one_crop_at_most(
    plan: EpochPlan,
) -> None:
    for step in range(plan.steps):
        rounds = plan.rounds(step)
        assert [p for part in rounds for p in part.positions] == list(plan.positions(step))
        sizes = [len(part.positions) for part in rounds]
        assert max(sizes) - min(sizes) <= 1


@given(plans())
def test_every_worker_takes_part_in_every_round_with_at_most_the_limit(plan: EpochPlan) -> None:
    for step in range(plan.steps):
        for part in plan.rounds(step):
            shares = [part.share(group) for group in groups(plan)]
            assert all(1 <= len(share) <= plan.limit for share in shares)
            # every crop as often as every other, so that means are those of the batch
            times = Counter(position for share in shares for position in share)
            assert set(times.values()) == {part.repeats}
            assert sorted(times) == list(part.positions)


@given(plans())
def test_full_batches_are_taken_at_once_where_nothing_limits_it(plan: EpochPlan) -> None:
    if plan.micro_batch is None and plan.steps > 1:
        assert len(plan.rounds(0)) == 1


def test_the_papers_batch_on_sixteen_gpus_and_its_last_one() -> None:
    plan = EpochPlan(crops=50_000, batch=32, workers=16)
    assert plan.steps == 1563
    assert plan.limit == 2
    assert [len(part.positions) for part in plan.rounds(1562)] == [16]
    assert plan.rounds(0)[0].share(Group(3, 16)) == [6, 7]


def test_accumulation_takes_the_same_rounds_on_one_worker_as_on_two() -> None:
    """Batch norm over all workers' crops sees the same crops then."""
    alone = EpochPlan(crops=13, batch=8, workers=1, micro_batch=4)
    shared = EpochPlan(crops=13, batch=8, workers=2, micro_batch=2)
    for step in range(2):
        assert [p.positions for p in alone.rounds(step)] == [
            p.positions for p in shared.rounds(step)
        ]
