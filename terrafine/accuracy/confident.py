"""How a label product errs, estimated from the product and a model that was trained on it."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
# Evidence, as a share of all pixels, that every class is given for being labelled as what it is:
# a class that hardly occurs is taken at its word.
_TRUST: Final = 0.001
# What the pixels did not show is rare, not impossible.
_UNSEEN: Final = 0.001


def confident_confusion(
    probability_nK: npt.NDArray[np.floating], label_n: npt.NDArray[np.integer]
) -> FloatArray:
    """(K, K) shares: row = true class, column = what the product says, each row summing to 1.

    The confident joint of Northcutt, Jiang and Chuang 2021 ("Confident learning", equations 1 and
    2): a pixel counts as truly of the most probable among the classes whose probability is at
    least its mean over the pixels with that label; pixels that reach none of these means do not
    count. Columns are then scaled to how often each label occurs (equation 3).

    ``probability_nK``: of a model trained on such labels, best on other pixels than these;
    ``label_n``: index 0..K-1 of each pixel's label.
    """
    pixels, classes = probability_nK.shape
    occurring = np.bincount(label_n, minlength=classes)
    threshold_K = np.full(classes, np.inf)
    for k in np.flatnonzero(occurring):
        threshold_K[k] = probability_nK[label_n == k, k].mean(dtype=np.float64)
    confident_nK = probability_nK >= threshold_K
    counted_n = confident_nK.any(axis=1)
    true_n = np.where(confident_nK, probability_nK, -1.0).argmax(axis=1)[counted_n]
    pairs = np.bincount(true_n * classes + label_n[counted_n], minlength=classes**2)
    joint = pairs.reshape(classes, classes).astype(np.float64)
    seen = joint.sum(axis=0)
    joint *= np.divide(occurring, seen, out=np.zeros(classes), where=seen > 0)
    joint[np.diag_indices(classes)] += _TRUST * max(pixels, 1)
    shares = joint / joint.sum(axis=1, keepdims=True) + _UNSEEN
    found: FloatArray = shares / shares.sum(axis=1, keepdims=True)
    return found
