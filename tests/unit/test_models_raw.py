"""Raw numbers, scaling and missing pixels."""

from __future__ import annotations

import pytest
import torch

from terrafine.errors import ModelError
from terrafine.models import RawInput, RawModel

FILL = 65535


def raw() -> RawInput:
    return RawInput(mean_C=[100.0, 1000.0], std_C=[10.0, 50.0], fill=FILL)


def windows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 3000, (2, 2, 8, 8), dtype=torch.int32, generator=generator)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.float32, torch.float64])
def test_raw_numbers_are_scaled_the_same_whatever_type_carries_them(dtype: torch.dtype) -> None:
    image = windows()
    image[0, 0, 0, 0] = FILL
    scaled, valid = raw()(image.to(dtype))
    expected, expected_valid = raw()(image.double())
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, expected)
    assert torch.equal(valid, expected_valid)
    assert scaled[1, 1, 3, 4].item() == pytest.approx((image[1, 1, 3, 4].item() - 1000) / 50)


def test_a_pixel_is_missing_where_any_band_is_fill_and_only_there() -> None:
    image = windows()
    image[0, 1, 2, 3] = FILL
    image[1, :, 5, 5] = FILL
    image[1, 0, 6, 6] = FILL - 1
    valid = RawModel(raw(), torch.nn.Identity()).valid(image.to(torch.uint16))
    assert (~valid).nonzero().tolist() == [[0, 2, 3], [1, 5, 5]]


def test_zero_is_a_number_like_any_other_unless_it_is_the_fill() -> None:
    image = windows()
    image[0, 0, 0, 0] = 0
    assert raw().forward(image)[1].all()
    assert not RawInput([1.0, 1.0], [1.0, 1.0], fill=0)(image)[1].all()


def test_missing_pixels_take_the_mean_of_their_own_window() -> None:
    image = windows()
    image[0, 0, :3] = FILL
    scaled, valid = raw()(image.to(torch.uint16))
    for band in range(2):
        mean = scaled[0, band][valid[0]].mean()
        assert torch.allclose(scaled[0, band, :3], mean, atol=1e-5)
    assert torch.equal(scaled[1], raw()(image[1:])[0][0])


def test_missing_pixels_do_not_move_the_mean_that_instance_norm_sees() -> None:
    image = windows()
    scaled, _ = raw()(image)
    image[:, :, :2] = FILL
    with_gap, valid = raw()(image)
    assert torch.allclose(with_gap.mean((2, 3)), scaled[:, :, 2:].mean((2, 3)), atol=1e-4)
    assert torch.equal(with_gap[:, :, 2:], scaled[:, :, 2:])
    assert not valid[:, :2].any()


def test_a_window_wholly_missing_is_zero() -> None:
    scaled, valid = raw()(torch.full((1, 2, 8, 8), FILL, dtype=torch.int32).to(torch.uint16))
    assert not valid.any()
    assert torch.equal(scaled, torch.zeros_like(scaled))


def test_logits_and_valid_together_are_the_same_as_apart() -> None:
    model = RawModel(raw(), torch.nn.Conv2d(2, 3, 1))
    image = windows()
    image[0, 0, 0] = FILL
    logits, valid = model.logits_and_valid(image)
    assert torch.equal(logits, model(image))
    assert torch.equal(valid, model.valid(image))


@pytest.mark.parametrize(
    ("mean", "std", "fill", "says"),
    [
        ([1.0, 2.0], [1.0], 0, "2 band means and 1 standard deviations"),
        ([1.0, 2.0], [1.0, 0.0], 0, "band 2 has mean 2 and standard deviation 0"),
        ([float("nan"), 2.0], [1.0, 1.0], 0, "band 1 has mean nan"),
        ([1.0], [1.0], 65536, "fill 65536"),
    ],
)
def test_scaling_that_cannot_be_used_is_refused(mean, std, fill: int, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        RawInput(mean, std, fill)
