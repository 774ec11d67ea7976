from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import Plan, ShardJob, decide
from terrafine.spec import EnhanceSpec
from tests.imagery import ENHANCED, ArrayImagery, QuickPredictor, small_spec, smooth, two_scenes

ARRAYS = ("landcover", "confidence", "source")


def mapped(imagery, spec, legend=SEVEN, backwards=False):
    """The three arrays over the imagery's window, put together from shards."""
    job = ShardJob(imagery, QuickPredictor(spec.window), spec, legend)
    plan = Plan.of(imagery, spec)
    arrays = {name: np.full(plan.extent.shape, 9999, np.int64) for name in ARRAYS}
    for shard in reversed(plan.shards()) if backwards else plan.shards():
        result = job(shard)
        for name in ARRAYS:
            arrays[name][shard.slices(plan.extent)] = getattr(result, name)
    inside = imagery.window.slices(plan.extent)
    # corners of the window that no scene covers are in no shard when shards are small
    _, source = imagery.read(imagery.window)
    return {name: np.where(source > 0, array[inside], -1) for name, array in arrays.items()}


def assert_same(one, other):
    for name in ARRAYS:
        assert np.array_equal(one[name], other[name]), name


@settings(max_examples=12, deadline=None)
@given(
    row=st.integers(-2000, 2000),
    col=st.integers(-2000, 2000),
    block=st.sampled_from([16, 32, 64]),
    core=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 10**6),
)
def test_the_enhanced_map_does_not_depend_on_the_size_of_the_shards(row, col, block, core, seed):
    imagery = two_scenes(row, col, seed)
    spec = small_spec(core=core, enhance=EnhanceSpec(block=block, threshold=140))
    maps = [mapped(imagery, spec.model_copy(update={"shard": s})) for s in (64, 128, 512)]
    assert_same(maps[0], maps[1])
    assert_same(maps[0], maps[2])


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(-40, 40),
    cols=st.integers(-40, 40),
    block=st.sampled_from([16, 32, 64]),
)
def test_the_enhanced_map_does_not_depend_on_the_absolute_position(rows, cols, block):
    spec = small_spec(enhance=EnhanceSpec(block=block, threshold=140))
    step = max(spec.core, block)
    here, there = two_scenes(), two_scenes(-310 + rows * step, 75 + cols * step)
    assert_same(mapped(here, spec), mapped(there, spec))


def test_the_map_does_not_depend_on_the_order_of_the_shards():
    spec = small_spec()
    assert_same(mapped(two_scenes(), spec), mapped(two_scenes(), spec, backwards=True))


def test_the_test_scene_shows_enhancement_and_every_array_varies():
    """Else the invariants above would hold of a map without anything in it."""
    imagery, spec = two_scenes(), small_spec()
    plain = small_spec(enhance=EnhanceSpec(enabled=False, block=32))
    enhanced, argmax = mapped(imagery, spec), mapped(imagery, plain)
    changed = enhanced["landcover"] != argmax["landcover"]
    assert 0.02 < changed.mean() < 0.9
    assert {1, 2, 3, 4, ENHANCED} <= set(np.unique(enhanced["landcover"]))
    assert set(np.unique(enhanced["source"])) == {-1, 1, 2}


def test_pixels_without_a_valid_band_are_looked_at_and_have_no_class_confidence_or_source():
    imagery, spec = two_scenes(), small_spec()
    plan = Plan.of(imagery, spec)
    job = ShardJob(imagery, QuickPredictor(spec.window), spec, SEVEN)
    for shard in plan.shards():
        image, source = imagery.read(shard)
        missing = (image == imagery.fill).any(axis=0)
        result = job(shard)
        assert (result.landcover[missing] == 0).all()
        assert (result.confidence[missing] == 0).all()
        assert (result.landcover[~missing] > 0).all()
        assert np.array_equal(result.source, source)


def test_windows_without_a_valid_pixel_are_never_inferred():
    image = smooth(np.random.default_rng(0), 256, 256)
    image[:, :, 128:] = 0
    imagery = ArrayImagery([(Window(0, 0, 256, 256), image)])
    spec = small_spec(shard=256)
    job = ShardJob(imagery, QuickPredictor(spec.window), spec, SEVEN)
    job(Window(0, 0, 256, 256))
    assert len(job.predictor.asked) == 8 * 4
    assert set(job.predictor.asked) == {(1, 4, 48, 48)}, "one window at a time"


def test_only_enhancement_needs_the_ring_of_blocks_around_the_shard():
    imagery = ArrayImagery([(Window(0, 0, 192, 192), smooth(np.random.default_rng(0), 192, 192))])
    middle = Window(64, 64, 64, 64)
    counts = {}
    for enabled in (True, False):
        spec = small_spec(enhance=EnhanceSpec(enabled=enabled, block=32))
        job = ShardJob(imagery, QuickPredictor(spec.window), spec, SEVEN)
        job(middle)
        counts[enabled] = len(job.predictor.asked)
    assert counts == {True: 16, False: 4}


def test_a_legend_without_an_enhanced_class_is_mapped_by_argmax():
    legend = SEVEN.model_copy(update={"enhanced": None})
    imagery = two_scenes()
    with_block, without = small_spec(), small_spec(enhance=EnhanceSpec(enabled=False, block=32))
    assert_same(mapped(imagery, with_block, legend), mapped(imagery, without, legend))
    assert ENHANCED not in mapped(imagery, with_block, legend)["landcover"]


def test_the_network_sees_pixels_beyond_the_shard_as_far_as_the_halo():
    shard = Window(64, 64, 64, 64)
    image = smooth(np.random.default_rng(0), 192, 192)
    spec = small_spec(halo=16, enhance=EnhanceSpec(enabled=False, block=32))

    def landcover(changed_rows):
        seen = image.copy()
        seen[:, changed_rows] = 200
        imagery = ArrayImagery([(Window(0, 0, 192, 192), seen)])
        return ShardJob(imagery, QuickPredictor(spec.window), spec, SEVEN)(shard).landcover

    unchanged = landcover(slice(0, 0))
    assert not np.array_equal(landcover(slice(128, 136)), unchanged), "inside the halo"
    assert np.array_equal(landcover(slice(144, 192)), unchanged), "beyond it"


@pytest.mark.parametrize("fill", [0, 65535])
def test_the_fill_number_is_the_imagerys_own(fill):
    image = smooth(np.random.default_rng(0), 64, 64)
    image[:, :10] = fill
    imagery = ArrayImagery([(Window(0, 0, 64, 64), image)], fill=fill)
    spec = small_spec()
    result = ShardJob(imagery, QuickPredictor(spec.window, fill=fill), spec, SEVEN)(
        Window(0, 0, 64, 64)
    )
    assert (result.landcover[:10] == 0).all()
    assert (result.landcover[10:] > 0).all()


@pytest.mark.parametrize(("shard", "block", "core"), [(64, 16, 64), (64, 64, 16), (128, 32, 32)])
def test_enhancement_across_shards_is_opencvs_of_the_whole_image(shard, block, core):
    """Bit for bit: the probabilities are put together first, and equalised as one image."""
    whole = Window(0, 0, 512, 512)
    imagery = ArrayImagery([(whole, smooth(np.random.default_rng(1), 512, 512))])
    enhance = EnhanceSpec(block=block, threshold=140)
    spec = small_spec(shard=shard, core=core, enhance=enhance)
    model, inner = QuickPredictor(spec.window), slice(spec.halo, -spec.halo)
    said = np.zeros((3, 512, 512), np.uint8)
    for window in whole.tiles(core):
        answer = model.predict(imagery.read(window.buffered(spec.halo))[0][None])
        arrays = (answer.enhanced_NHW, answer.other_class_NHW, answer.other_NHW)
        said[:, *window.slices(whole)] = [array_NHW[0, inner, inner] for array_NHW in arrays]
    # around the image the map is looked at by whole blocks, in which there is nothing
    blocks = 512 // block + 2
    clahe = cv2.createCLAHE(enhance.clip_limit, (blocks, blocks))
    equalised = clahe.apply(np.pad(said[0], block))[block:-block, block:-block]
    landcover, confidence = decide(
        *said, equalised >= enhance.threshold, enhanced_code=ENHANCED, spec=enhance
    )

    job = ShardJob(imagery, model, spec, SEVEN)
    for place in whole.tiles(shard):
        found = job(place)
        assert np.array_equal(found.landcover, landcover[place.slices(whole)])
        assert np.array_equal(found.confidence, confidence[place.slices(whole)])
    plain, _ = decide(*said, None, enhanced_code=ENHANCED, spec=enhance)
    assert (plain != landcover).mean() > 0.02, "enhancement that can be seen"
