"""What a mapping worker takes of memory, as docs/mapping.md states it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_worker_takes_ten_bytes_a_pixel_of_two_shards_and_some_windows() -> None:
    size = 4096
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.map_memory", str(size)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    found = json.loads(done.stdout)
    windows = 100e6
    assert found["most"] - found["before"] < 10 * 2 * size**2 + windows
