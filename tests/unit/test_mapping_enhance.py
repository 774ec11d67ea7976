from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafine.mapping import clahe_mask
from terrafine.spec import EnhanceSpec
from tests.imagery import smooth


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from([16, 32, 64]),
    blocks=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    data=st.data(),
    clip_limit=st.sampled_from([1.0, 2.0, 7.5]),
    threshold=st.integers(60, 200),
)
def test_inside_one_block_of_halo_the_mask_does_not_depend_on_where_the_array_was_cut(
    seed, block, blocks, data, clip_limit, threshold
):
    rng = np.random.default_rng(seed)
    spec = EnhanceSpec(block=block, clip_limit=clip_limit, threshold=threshold)
    height, width = blocks[0] * block, blocks[1] * block
    whole = smooth(rng, height, width)[0].astype(np.uint8)
    whole[rng.random(whole.shape) < 0.1] = rng.integers(0, 256)
    top = data.draw(st.integers(0, blocks[0] - 3)) * block
    left = data.draw(st.integers(0, blocks[1] - 3)) * block
    bottom = data.draw(st.integers(top // block + 3, blocks[0])) * block
    right = data.draw(st.integers(left // block + 3, blocks[1])) * block

    cut = clahe_mask(whole[top:bottom, left:right], spec)
    inner = slice(block, -block), slice(block, -block)
    assert np.array_equal(cut[inner], clahe_mask(whole, spec)[top:bottom, left:right][inner])


def test_the_equalised_values_themselves_are_independent_of_the_cut_not_only_the_mask():
    probability = smooth(np.random.default_rng(3), 5 * 32, 6 * 32)[0].astype(np.uint8)
    for threshold in range(1, 256, 7):
        spec = EnhanceSpec(block=32, threshold=threshold)
        cut = clahe_mask(probability[32:128, 64:160], spec)[32:64, 32:64]
        assert np.array_equal(cut, clahe_mask(probability, spec)[64:96, 96:128])


def test_the_mask_is_opencvs_clahe_at_or_above_the_threshold():
    probability = smooth(np.random.default_rng(1), 96, 64)[0].astype(np.uint8)
    spec = EnhanceSpec(block=32, clip_limit=3.0, threshold=100)
    equalised = cv2.createCLAHE(3.0, (2, 3)).apply(probability)
    assert np.array_equal(clahe_mask(probability, spec), equalised >= 100)


def test_faint_contrast_becomes_a_mask():
    """Weak lines on empty ground, below the threshold, are lifted over it by their histogram."""
    probability = np.full((96, 96), 20, np.uint8)
    lines = np.arange(96) % 32 < 4
    probability[:, lines] = 60
    mask = clahe_mask(probability, EnhanceSpec(block=32, clip_limit=40.0, threshold=100))
    assert mask[:, lines].all()
    assert not mask[:, ~lines].any()


@pytest.mark.parametrize("shape", [(33, 32), (32, 48)])
def test_an_array_off_the_block_grid_is_a_bug_in_the_caller(shape):
    with pytest.raises(AssertionError, match="block grid"):
        clahe_mask(np.zeros(shape, np.uint8), EnhanceSpec(block=32))
