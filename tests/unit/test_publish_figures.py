"""Pictures: what is missing is transparent, and a class can be read back from its colour."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import FBP, SEVEN, LandClass, Legend
from terrafine.publish.figures import (
    class_palette,
    confidence_palette,
    display_bands,
    hide_where_unmapped,
    paint_points,
    palette_png,
    render_image,
    rgba_webp,
    stretch_of,
)
from terrafine.publish.quicklook import quicklook, scale_bar_metres


def decoded(picture: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(picture)).convert("RGBA"))


def test_a_class_picture_gives_back_every_class_and_hides_the_rest() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = decoded(palette_png(codes, class_palette(FBP)))

    for item in FBP.classes:
        assert rgba[codes == item.code].tolist() == [[*item.rgb, 255]]
    others = ~np.isin(codes, FBP.codes)
    assert (rgba[others][:, 3] == 0).all()


def test_classes_of_one_colour_stay_apart_in_the_palette() -> None:
    legend = Legend(
        name="twins",
        classes=tuple(LandClass(code=code, name=str(code), color="#ffffff") for code in (1, 2, 3)),
    )
    colours = {tuple(class_palette(legend)[code]) for code in legend.codes}

    assert len(colours) == 3
    assert all(min(colour[:3]) >= 253 for colour in colours)


def test_every_percent_of_confidence_has_a_colour_of_its_own() -> None:
    palette = confidence_palette()

    assert len({tuple(row) for row in palette[:101]}) == 101
    assert (palette[101:, 3] == 0).all()


def test_stretch_ignores_missing_pixels_and_clips_the_rest() -> None:
    image = np.tile(np.arange(100, 200, dtype=np.uint16), (1, 100, 1))
    image[:, :50] = 65535
    stretch = stretch_of(image, 65535, (0, 0, 0))
    rgba = render_image(image, 65535, (0, 0, 0), stretch)

    assert 101 < stretch.low[0] < 103
    assert 197 < stretch.high[0] < 199
    assert (rgba[:50] == 0).all()
    assert rgba[60, 0].tolist() == [0, 0, 0, 255]
    assert rgba[60, 99].tolist() == [255, 255, 255, 255]


def test_a_scene_without_a_valid_pixel_or_without_contrast_still_renders() -> None:
    for value in (65535, 7):
        image = np.full((3, 4, 4), value, np.uint16)
        rgba = render_image(image, 65535, (0, 1, 2), stretch_of(image, 65535, (0, 1, 2)))
        assert (rgba[..., 3] == (0 if value == 65535 else 255)).all()


def test_bands_are_found_by_name() -> None:
    assert display_bands(("Blue", "green", "RED", "nir"), ("red", "green", "blue")) == (2, 1, 0)
    assert display_bands(("b1", "b2"), ("red", "green", "blue")) is None


def test_webp_keeps_transparency() -> None:
    rgba = np.random.default_rng(0).integers(0, 255, (40, 40, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    rgba[:7] = 0

    np.testing.assert_array_equal(decoded(rgba_webp(rgba, 80))[..., 3], rgba[..., 3])


def test_confidence_is_hidden_where_nothing_is_mapped() -> None:
    confidence, mapped = np.array([[0, 50, 60]], np.uint8), np.array([[3, 0, 255]], np.uint8)

    assert hide_where_unmapped(confidence, mapped).tolist() == [[0, 255, 255]]


def test_points_are_painted_where_they_lie() -> None:
    panel = paint_points(
        (20, 30),
        np.array([0, 10, 99]),
        np.array([0, 29, 5]),
        np.array([1, 2, 3], np.uint8),
        side=3,
    )

    assert panel[0, 0] == 1
    assert panel[9:12, 28:].tolist() == [[2, 2]] * 3
    assert sorted(np.unique(panel).tolist()) == [0, 1, 2]


def test_scale_bar_is_a_round_length_that_fits() -> None:
    assert [scale_bar_metres(metres) for metres in (1.0, 999, 1000, 4645, 26000)] == [
        *(1, 500, 1000, 2000, 20000)
    ]


def test_quicklook_shows_the_map_in_the_legends_colours() -> None:
    codes = np.full((40, 60), 2, np.uint8)
    codes[:, :20] = 5
    picture = quicklook(
        codes,
        grid=PixelGrid("EPSG:32617", 30.0, 30.0, 0.0, 0.0),
        window=Window(-100_000, 10_000, 40, 60),
        legend=SEVEN,
        title="A title",
    )
    pixels = decoded(picture)[..., :3].reshape(-1, 3)
    wood = (pixels == SEVEN.classes[1].rgb).all(1).sum()
    built = (pixels == SEVEN.classes[4].rgb).all(1).sum()

    assert built > 10_000
    assert 1.9 < wood / built < 2.1
