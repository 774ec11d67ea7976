"""The decision: from two classes and their probabilities to a class and a confidence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from terrafine.legend import NO_CLASS, UInt8Array
from terrafine.spec import EnhanceSpec


def decide(
    enhanced_HW: UInt8Array,
    other_class_HW: UInt8Array,
    other_HW: UInt8Array,
    mask_HW: npt.NDArray[np.bool_] | None,
    *,
    enhanced_code: int | None,
    spec: EnhanceSpec,
) -> tuple[UInt8Array, UInt8Array]:
    """Choose between the enhanced class and the best other one (Dong et al. 2020, section 3.3).

    The enhanced probability is multiplied by ``spec.gain`` inside ``mask_HW`` and by ``spec.loss``
    outside; the others are unchanged; the larger wins, the other one on a tie. Without a mask the
    probabilities are compared as they are.

    Parameters: the three arrays of a ``Prediction`` for one window, uint8 (H, W).
    Returns ``landcover_HW`` (legend codes; 0 where the pixel is missing) and ``confidence_HW``
    (percent of the model's own probability of the class chosen, before gain and loss; 0 where
    missing), both uint8.
    """
    if enhanced_code is None:
        wins_HW = np.zeros(other_HW.shape, bool)
    elif mask_HW is None:
        wins_HW = enhanced_HW > other_HW
    else:
        wins_HW = other_HW < np.where(
            mask_HW,
            _first_unbeaten(spec.gain)[enhanced_HW],
            _first_unbeaten(spec.loss)[enhanced_HW],
        )
    wins_HW &= other_class_HW != NO_CLASS
    landcover_HW = np.where(wins_HW, np.uint8(enhanced_code or NO_CLASS), other_class_HW)
    confidence_HW = _PERCENT[np.where(wins_HW, enhanced_HW, other_HW)]
    confidence_HW[landcover_HW == NO_CLASS] = 0
    return landcover_HW, confidence_HW


# round(100 p) for p = q / 255, halves up
_PERCENT = ((np.arange(256) * 200 + 255) // 510).astype(np.uint8)


def _first_unbeaten(factor: float) -> npt.NDArray[np.uint16]:
    """(256,) enhanced probability -> the smallest other probability that it does not exceed.

    For whole numbers, other < e * factor is other < ceil(e * factor): one small table instead of
    two float arrays as large as the shard, and nothing left to rounding.
    """
    return np.minimum(np.ceil(np.arange(256) * np.float64(factor)), 256).astype(np.uint16)
