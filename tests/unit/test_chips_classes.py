"""A class nobody can learn is said before hours of training, not after."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from terrafine.chips import require_classes
from terrafine.errors import ChipStoreError
from terrafine.legend import LEGENDS
from terrafine.storage import Storage


class Shares:
    """Cropland everywhere; water on chip 0 only; the other classes nowhere."""

    legend = LEGENDS["seven"]
    storage = Storage("s3://maps/chips")

    def class_shares(self) -> np.ndarray:
        shares_NK = np.zeros((4, len(self.legend.names)))
        shares_NK[:, self.legend.names.index("cropland")] = 0.9
        shares_NK[0, self.legend.names.index("water")] = 0.1
        return shares_NK


def test_a_class_of_the_validation_chips_that_no_training_chip_has_is_refused() -> None:
    with pytest.raises(ChipStoreError) as error:
        require_classes(Shares(), [1, 2], [0, 3])
    message = str(error.value)
    assert message.startswith(
        "s3://maps/chips: no training chip has class water, which validation chips have (0.05"
    )
    assert "chips.block" in message
    assert "filter.min_agreement" in message


def test_a_class_of_no_chip_is_only_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_classes(Shares(), [0, 1], [2, 3])
    (record,) = caplog.records
    assert "no chip has class woodland, grassland, impervious, bare land, snow" in record.message
    assert "water" not in record.message
