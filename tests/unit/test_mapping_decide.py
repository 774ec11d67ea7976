from __future__ import annotations

import numpy as np
import pytest

from terrafine.mapping import decide
from terrafine.spec import EnhanceSpec

ROAD, FOREST = 5, 2
ALL_PAIRS = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
FOREST_EVERYWHERE = np.full((256, 256), FOREST, np.uint8)


def choose(enhanced, other, mask=None, code=FOREST, **spec):
    landcover, confidence = decide(
        np.array([[enhanced]], np.uint8),
        np.array([[code]], np.uint8),
        np.array([[other]], np.uint8),
        None if mask is None else np.array([[mask]]),
        enhanced_code=ROAD,
        spec=EnhanceSpec(**spec),
    )
    return int(landcover[0, 0]), int(confidence[0, 0])


def test_without_enhancement_the_more_probable_class_wins_and_the_other_on_a_tie():
    assert choose(131, 124) == (ROAD, 51)
    assert choose(124, 131) == (FOREST, 51)
    assert choose(128, 128) == (FOREST, 50)


def test_inside_the_mask_the_enhanced_class_counts_double_and_half_outside():
    assert choose(80, 150, mask=True)[0] == ROAD
    assert choose(80, 160, mask=True)[0] == FOREST, "80 x 2 does not exceed 160"
    assert choose(200, 100, mask=False)[0] == FOREST, "200 / 2 does not exceed 100"
    assert choose(202, 100, mask=False)[0] == ROAD


def test_confidence_is_the_models_own_probability_not_the_enhanced_one():
    assert choose(80, 150, mask=True) == (ROAD, 31)
    assert choose(255, 0, mask=True) == (ROAD, 100)


def test_a_missing_pixel_has_no_class_and_no_confidence():
    assert choose(0, 0, code=0) == (0, 0)
    assert choose(0, 0, code=0, mask=True) == (0, 0)


@pytest.mark.parametrize("gain", [1.0, 1.1, 2.0, 3.7])
@pytest.mark.parametrize("loss", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("inside", [True, False])
def test_every_pair_of_probabilities_is_decided_as_real_numbers_say(gain, loss, inside):
    enhanced, other = ALL_PAIRS
    landcover, _ = decide(
        enhanced,
        FOREST_EVERYWHERE,
        other,
        np.full(enhanced.shape, inside),
        enhanced_code=ROAD,
        spec=EnhanceSpec(gain=gain, loss=loss),
    )
    wins = enhanced.astype(np.float64) * (gain if inside else loss) > other
    assert np.array_equal(landcover == ROAD, wins)


def test_a_legend_without_an_enhanced_class_keeps_the_best_class():
    _, other = ALL_PAIRS
    landcover, confidence = decide(
        np.zeros_like(other),
        FOREST_EVERYWHERE,
        other,
        None,
        enhanced_code=None,
        spec=EnhanceSpec(),
    )
    assert (landcover == FOREST).all()
    assert np.array_equal(confidence, np.floor(other / 255 * 100 + 0.5).astype(np.uint8))
