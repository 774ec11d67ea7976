"""What is noted of a group of chips when its shards are written."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ChipRecord(BaseModel):
    """A chip that was kept: its place in the arrays, the tile it was cut from, and what is on it.

    ``shares``: of all pixels, class by class in the legend's order. ``missing_share``: no image
    or no label; ``nodata_share``: no image. ``sources``: numbers of scenes in the spec, from 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    position: int
    tile: int
    shares: tuple[float, ...]
    missing_share: float
    nodata_share: float
    sources: tuple[int, ...]
    sha256: str


class GroupRecord(BaseModel):
    """A finished group: ``seen``: scenes that gave a pixel to any of its ``tiles`` tiles;
    ``shards``: objects written and their bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: int
    tiles: int
    chips: tuple[ChipRecord, ...]
    seen: tuple[int, ...]
    shards: dict[str, int]
