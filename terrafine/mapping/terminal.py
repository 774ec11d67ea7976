"""The shards of a running map as characters, small enough for a terminal."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
from rich.columns import Columns
from rich.console import Group
from rich.text import Text

from terrafine.mapping.write import ShardKey

# by how much of a cell is done; a cell is two characters wide, so that it looks square
_BLOCKS = "·░▒▓█"
_STYLES = ("dim", "yellow", "yellow", "yellow", "green")


def draw_shards(
    planned: Collection[ShardKey], done: Collection[ShardKey], *, width: int, height: int
) -> Columns:
    """A picture of each zone, north up, from dots (planned) to full blocks (done).

    A cell stands for as many shards a side as it takes to fit ``width`` columns and ``height``
    lines of characters.
    """
    zones = {zone: _grids(zone, planned, done) for zone in sorted({zone for zone, _ in planned})}
    step = 1
    while not _fits([grids[0].shape for grids in zones.values()], step, width, height):
        step *= 2
    pictures = [
        Group(Text(f"{zone}  {int(done_HW.sum()):,}/{int(planned_HW.sum()):,}"),
              _picture(planned_HW, done_HW, step))
        for zone, (planned_HW, done_HW) in zones.items()
    ]  # fmt: skip
    return Columns(pictures, padding=(0, 2))


def _grids(
    zone: str, planned: Collection[ShardKey], done: Collection[ShardKey]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(rows, columns) 1 where a shard of the zone is planned, and where it is done."""
    own = [window for name, window in planned if name == zone]
    size, top, left = own[0].height, min(w.row for w in own), min(w.col for w in own)
    shape = (
        (max(w.row for w in own) - top) // size + 1,
        (max(w.col for w in own) - left) // size + 1,
    )
    found = np.zeros((2, *shape), np.int64)
    for number, shards in enumerate((planned, done)):
        places = [((w.row - top) // size, (w.col - left) // size) for z, w in shards if z == zone]
        if places:
            found[number][tuple(np.array(places).T)] = 1
    return found[0], found[1]


def _fits(shapes: list[tuple[int, ...]], step: int, width: int, height: int) -> bool:
    """Whether the zones, side by side and in rows, fit with so many shards a side in a cell."""
    if all(-(-side // step) == 1 for shape in shapes for side in shape):
        return True
    widest = max(max(2 * -(-cols // step), len("epsg32650  99,999/99,999")) for _, cols in shapes)
    highest = max(-(-rows // step) for rows, _ in shapes) + 1
    abreast = max(1, width // (widest + 4))
    return widest <= width and highest * -(-len(shapes) // abreast) <= height


def _picture(planned_HW: npt.NDArray[np.int64], done_HW: npt.NDArray[np.int64], step: int) -> Text:
    planned_HW, done_HW = _summed(planned_HW, step), _summed(done_HW, step)
    lines = Text()
    for planned_W, done_W in zip(planned_HW, done_HW, strict=True):
        for all_of, some in zip(planned_W, done_W, strict=True):
            # begun is seen at once, done only when it is
            level = 4 if some == all_of else -(-3 * int(some) // int(all_of or 1))
            lines.append("  " if not all_of else 2 * _BLOCKS[level], _STYLES[level])
        lines.append("\n")
    lines.rstrip()
    return lines


def _summed(array_HW: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int64]:
    rows, cols = (-(-side // step) * step for side in array_HW.shape)
    padded = np.zeros((rows, cols), np.int64)
    padded[: array_HW.shape[0], : array_HW.shape[1]] = array_HW
    return np.asarray(padded.reshape(rows // step, step, cols // step, step).sum(axis=(1, 3)))
