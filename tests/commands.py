"""``terrafine`` as a user starts it, and its entry point in this process."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from terrafine.cli.main import main


def started(*arguments: str | Path, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name("terrafine"), *map(str, arguments)],
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


def called(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same here, where everything is imported already: what it prints, and its exit code."""
    command = ["terrafine", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patched.setattr(sys, "argv", command)
        try:
            main()
        except SystemExit as ended:
            return subprocess.CompletedProcess(
                command, int(ended.code or 0), out.getvalue(), err.getvalue()
            )
    raise AssertionError("a command ends with a code")
