"""Contrast-limited adaptive histogram equalisation of one class's probability.

Dong et al. 2020, section 3.3. The blocks lie on the global grid, so that neighbouring images and
shards equalise the same pixels with the same histograms and no seam appears between them.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from terrafine.legend import UInt8Array
from terrafine.spec import EnhanceSpec


def clahe_mask(probability_HW: UInt8Array, spec: EnhanceSpec) -> npt.NDArray[np.bool_]:
    """Where the equalised probability reaches the threshold.

    Parameters: ``probability_HW`` round(255 p), whose edges lie on lines of the block grid; 0 where
    the image is missing.
    Returns (H, W) bool. A pixel depends on its own block and the eight around it (bilinear
    interpolation between the tables of the nearest four), so the outermost ring of blocks is a
    halo: only what lies inside it is independent of where the array was cut. That holds to the
    last bit because the block is a power of two: cv2 computes its weights as x / block - 1/2 in
    float32, which is then exact at every x.
    """
    height, width = probability_HW.shape
    assert height % spec.block == 0, "CLAHE windows are cut on the block grid"
    assert width % spec.block == 0, "CLAHE windows are cut on the block grid"
    clahe = cv2.createCLAHE(spec.clip_limit, (width // spec.block, height // spec.block))
    equalised_HW = clahe.apply(np.ascontiguousarray(probability_HW))
    return np.asarray(equalised_HW >= spec.threshold)
