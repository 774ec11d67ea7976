"""Which of several networks is worth having: what the front keeps, and which one it names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrafine.accuracy import Figure, Front, Place


def place(network: str, seconds: float, accuracy: float | None, over: float | None = None) -> Place:
    return Place(
        network=network,
        engine="onnx",
        threads=2,
        seconds_per_megapixel=seconds,
        overall_accuracy=Figure(value=accuracy),
        over_first=None if over is None else Figure(value=over, low=over - 0.001, high=over),
        parameters=1,
        macs_per_pixel=1,
        models=(f"digest of {network}",),
    )


def front(*places: Place, within: float = 0.005) -> Front:
    return Front(name="test", first=places[0].network, statement="", within=within, places=places)


def test_the_front_keeps_what_nothing_beats_in_both_speed_and_accuracy() -> None:
    found = front(
        place("slow and best", 4.0, 0.9),
        place("slower, no better", 5.0, 0.9),
        place("fast", 1.0, 0.8),
        place("fast, but worse", 2.0, 0.7),
        place("between", 2.0, 0.85),
        place("not measured", 0.5, None),
    )
    assert [p.network for p in found.best()] == ["fast", "between", "slow and best"]


def test_the_fastest_that_stays_within_the_allowed_loss_is_named() -> None:
    first = place("whole", 4.0, 0.9)
    near, far = place("near", 2.0, 0.896, -0.004), place("far", 1.0, 0.894, -0.006)
    found = front(first, near, far)
    assert found.chosen() == near
    assert found.times_faster(near) == 2
    assert found.verdict() == (
        "The fastest within 0.5 points of whole: near, 2.0 times faster, "
        "-0.40 (-0.50 to -0.40) points."
    )
    assert front(first, near, far, within=0.007).chosen() == far
    assert front(first, far).verdict() == "Nothing faster stays within 0.5 points of whole."


def test_what_was_not_held_against_the_first_is_never_chosen() -> None:
    found = front(place("whole", 4.0, 0.9), place("other samples", 1.0, 0.95))
    assert found.chosen() == found.places[0]
    lost = found.model_copy(update={"first": "whole-that-failed"})
    assert lost.chosen() is None
    assert "was not measured" in lost.verdict()


def test_the_network_of_a_map_is_known_by_its_digest() -> None:
    found = front(place("whole", 4.0, 0.9), place("near", 2.0, 0.9, 0.0))
    assert found.of("digest of near") == found.places[1]
    assert found.of("") is None


numbers = st.floats(0.1, 10)
shares = st.floats(0, 1)


@given(st.lists(st.tuples(numbers, shares), min_size=1, max_size=12))
def test_whatever_is_put_aside_is_beaten_by_something_on_the_front(
    made: list[tuple[float, float]],
) -> None:
    found = front(*(place(str(i), s, v, v - made[0][1]) for i, (s, v) in enumerate(made)))
    best = [(b.seconds_per_megapixel, b.overall_accuracy.value or 0.0) for b in found.best()]
    for seconds, value in made:
        assert any(s <= seconds and v >= value for s, v in best)
    chosen = found.chosen()
    assert chosen is not None
    assert chosen.seconds_per_megapixel <= made[0][0]


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        place("x", 0.0, 0.5)
