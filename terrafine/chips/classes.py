"""Which classes the training chips can teach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from terrafine.errors import ChipStoreError
from terrafine.legend import Legend
from terrafine.progress import warn
from terrafine.storage import Storage


class Labelled(Protocol):
    """What is needed of a chip store."""

    @property
    def storage(self) -> Storage:
        """Where it is."""

    @property
    def legend(self) -> Legend:
        """The classes of the labels."""

    def class_shares(self) -> npt.NDArray[np.float64]:
        """(chips, classes) share of every class on every chip."""


def require_classes(store: Labelled, train: Sequence[int], validation: Sequence[int]) -> None:
    """Raise ChipStoreError for a class that validation chips have and no training chip has.

    Nothing could be learnt of it, and every figure would count it as wrong. A class that is on
    neither side is only warned of: the legend may be wider than the region.
    """
    shares_NK = store.class_shares()
    trained_K = (shares_NK[list(train)] > 0).any(axis=0)
    held_K = (shares_NK[list(validation)] > 0).any(axis=0)
    names = np.array(store.legend.names)
    absent = names[~trained_K & held_K].tolist()
    if absent:
        share = shares_NK[list(validation)][:, ~trained_K & held_K].mean(axis=0).max()
        raise ChipStoreError(
            f"{store.storage}: no training chip has class {', '.join(absent)}, which validation "
            f"chips have ({share:.2g} of their pixels); choose a smaller chips.block or another "
            "seed so that both sides get it, lower filter.min_agreement, or map it to 0 in "
            "labels.crosswalk"
        )
    unseen = names[~trained_K & ~held_K].tolist()
    if unseen:
        warn(
            f"no chip has class {', '.join(unseen)} of legend {store.legend.name!r}: the model "
            "will never map it"
        )
