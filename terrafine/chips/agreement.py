"""How far a model and the label product agree on a chip."""

from __future__ import annotations

import numpy as np

from terrafine.legend import NO_CLASS, UInt8Array


def agreement(predicted_HW: UInt8Array, label_HW: UInt8Array) -> float:
    """Share of the labelled pixels of a chip on which model and product have the same class.

    Both uint8 legend codes of one shape. Dong et al. 2020 (section 2.3) divide by all pixels of
    the chip; here pixels without a label (code 0: ignored classes, nodata, missing image) are
    left out, because no model can agree with them and a chip should not be dropped for a lake of
    wetland. Where every pixel is labelled the two are the same. 0.0 when no pixel is labelled.
    """
    if predicted_HW.shape != label_HW.shape:
        raise ValueError(f"prediction {predicted_HW.shape} and label {label_HW.shape} differ")
    labelled_HW = label_HW != NO_CLASS
    total = int(np.count_nonzero(labelled_HW))
    if total == 0:
        return 0.0
    return int(np.count_nonzero(labelled_HW & (predicted_HW == label_HW))) / total
