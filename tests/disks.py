"""A disk small enough to be full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def small_disk(folder: Path, *, kilobytes: int) -> Iterator[Path]:
    """A memory disk of that size mounted at ``folder``; the test is skipped where it may not be."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root: the full disk is not tested")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk here ({done.stderr.strip()}): the full disk is not tested")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
