"""The learning rate as a pure function of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["poly", "cosine", "constant"]

# The customary exponent for segmentation; Dong et al. 2020 give only the initial rate.
POLY_POWER = 0.9


def learning_rate(schedule: Schedule, initial: float, step: int, total: int) -> float:
    """Learning rate of optimiser step ``step`` (0-based) of ``total``.

    "poly": initial (1 - t)^0.9; "cosine": half a cosine from initial towards 0; "constant".
    t = step / total, so that no step has a rate of 0.
    """
    t = step / total
    if schedule == "poly":
        return initial * float((1 - t) ** POLY_POWER)
    if schedule == "cosine":
        return initial * 0.5 * (1 + math.cos(math.pi * t))
    return initial
