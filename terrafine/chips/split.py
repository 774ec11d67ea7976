"""The split into training and validation chips, without a pixel on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas
import numpy as np
import numpy.typing as npt

from terrafine.errors import ChipStoreError

BoolArray = npt.NDArray[np.bool_]

TRAIN = "train"
VALIDATION = "validation"
# A training chip that overlaps a validation chip of another zone; in neither part.
OVERLAP = "overlap"

_SHUFFLES = 64


def split_blocks(
    blocks: Sequence[tuple[str, int, int]],
    classes_NK: BoolArray,
    *,
    fraction: float,
    seed: int,
) -> BoolArray:
    """Which of N chips go to validation: whole blocks, until ``fraction`` of the chips is reached.

    ``blocks``: (zone, block row, block column) of every chip, because neighbouring chips resemble
    each other and a validation chip beside a training chip flatters the model. ``classes_NK``:
    which class occurs on which chip. Of 64 shuffles, a function of ``seed``, the first is taken
    that leaves most classes on both sides, then most classes in validation. ChipStoreError when
    there is only one block.
    """
    names = sorted(set(blocks))
    if len(names) < 2:
        raise ChipStoreError(
            f"all {len(blocks)} chips lie in {len(names)} block of the train/validation split; "
            "choose a smaller chips.block or chips.size, so that there is one for each part"
        )
    number = {name: i for i, name in enumerate(names)}
    block_N = np.array([number[block] for block in blocks])
    chips_B = np.bincount(block_N, minlength=len(names))
    classes_BK = np.zeros((len(names), classes_NK.shape[1]), bool)
    np.logical_or.at(classes_BK, block_N, classes_NK)
    generator = np.random.default_rng(seed)
    best: tuple[int, int] = (-1, -1)
    chosen_B = np.zeros(len(names), bool)
    for _ in range(_SHUFFLES):
        order = generator.permutation(len(names))
        enough = int(np.searchsorted(np.cumsum(chips_B[order]), fraction * len(blocks)))
        taken_B = np.zeros(len(names), bool)
        taken_B[order[: min(enough + 1, len(names) - 1)]] = True
        in_validation = classes_BK[taken_B].any(axis=0)
        in_both = in_validation & classes_BK[~taken_B].any(axis=0)
        score = (int(in_both.sum()), int(in_validation.sum()))
        if score > best:
            best, chosen_B = score, taken_B
    validation_N: BoolArray = chosen_B[block_N]
    return validation_N


def split_chips(
    footprints: geopandas.GeoSeries,
    blocks: Sequence[tuple[str, int, int]],
    classes_NK: BoolArray,
    *,
    fraction: float,
    seed: int,
) -> list[str]:
    """ "train", "validation" or "overlap" for every chip.

    ``footprints``: polygons in one CRS. Chips of one zone lie on one grid and share no pixel;
    chips of two zones may, and of such a pair across the split the training chip is left out.
    """
    validation_N = split_blocks(blocks, classes_NK, fraction=fraction, seed=seed)
    zones_N = np.array([zone for zone, _, _ in blocks])
    parts = [VALIDATION if chosen else TRAIN for chosen in validation_N]
    if len(set(zones_N)) > 1:
        held = np.flatnonzero(validation_N)
        # "intersects" would take neighbours that only touch, but those are of the same zone
        first, second = footprints.sindex.query(footprints.iloc[held], predicate="intersects")
        for chip, other in zip(held[first], second, strict=True):
            if zones_N[chip] != zones_N[other] and parts[other] == TRAIN:
                parts[other] = OVERLAP
    if TRAIN not in parts:
        raise ChipStoreError(
            "every training chip overlaps a validation chip of another zone; choose a smaller "
            "chips.size or chips.block"
        )
    return parts
