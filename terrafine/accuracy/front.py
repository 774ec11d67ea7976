"""Accuracy against speed: which of several networks is worth having."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from terrafine.accuracy.estimate import Figure


class Place(BaseModel):
    """A network on the plane of accuracy and speed.

    ``engine`` that ran it (map.predictor), with so many ``threads``; ``seconds_per_megapixel`` of
    the network's input; ``overall_accuracy``: share of 1; ``over_first``: the paired difference to
    the first network, None of that one itself; ``models``: digests of the model, one per seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    engine: str
    threads: int
    seconds_per_megapixel: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    overall_accuracy: Figure
    over_first: Figure | None
    parameters: int
    macs_per_pixel: int
    models: tuple[str, ...]


class Front(BaseModel):
    """Networks that were trained, assessed on the same samples and timed on one machine.

    ``within``: points of overall accuracy / 100 that the network to choose may lose against
    ``first``; ``statement``: what the accuracy means.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    first: str
    statement: str
    within: float
    places: tuple[Place, ...]

    def best(self) -> list[Place]:
        """Those that no other beats in both, fastest first."""
        placed = [
            (place.seconds_per_megapixel, place.overall_accuracy.value, place)
            for place in self.places
            if place.overall_accuracy.value is not None
        ]
        return [
            place
            for speed, value, place in sorted(placed, key=lambda p: (p[0], -p[1]))
            if not any(s <= speed and v >= value and (s, v) != (speed, value) for s, v, _ in placed)
        ]

    def chosen(self) -> Place | None:
        """The fastest whose accuracy stays ``within``; None where the first was not measured."""
        kept = [place for place in self.places if self._stays(place)]
        return min(kept, key=lambda place: place.seconds_per_megapixel, default=None)

    def of(self, model: str) -> Place | None:
        """The network with a model of this digest."""
        return next((place for place in self.places if model in place.models), None)

    def times_faster(self, place: Place) -> float | None:
        """Than the first one, None where that was not measured."""
        first = next((p for p in self.places if p.network == self.first), None)
        return first.seconds_per_megapixel / place.seconds_per_megapixel if first else None

    def verdict(self) -> str:
        """Which one to choose, in one sentence."""
        chosen, most = self.chosen(), f"{100 * self.within:g} points of {self.first}"
        if chosen is None:
            return f"{self.first} was not measured: nothing can be held against it."
        if chosen.network == self.first or chosen.over_first is None:
            return f"Nothing faster stays within {most}."
        faster = self.times_faster(chosen)
        speed = "" if faster is None else f"{faster:.1f} times faster, "
        return (
            f"The fastest within {most}: {chosen.network}, {speed}"
            f"{chosen.over_first.points()} points."
        )

    def engines(self) -> str:
        """What ran them, in words."""
        used = {(place.engine, place.threads): None for place in self.places}
        return ", ".join(f"{engine} on {threads} threads" for engine, threads in used)

    def _stays(self, place: Place) -> bool:
        if place.network == self.first:
            return True
        over = None if place.over_first is None else place.over_first.value
        return over is not None and over >= -self.within
