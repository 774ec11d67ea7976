"""What --help says is what was written: Markdown swallows <...> outside of code."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from terrafine.cli.main import app

BRACKETS = re.compile(r"<[^>]*>|\[[^\]]*\]")


def described(command: click.Command, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command, and what stands in brackets in its texts."""
    texts = [command.help or "", *(getattr(p, "help", None) or "" for p in command.params)]
    found = {" ".join(m.group().split()) for text in texts for m in BRACKETS.finditer(text)}
    if found:
        yield name.strip(), found
    for inner, child in getattr(command, "commands", {}).items():
        yield from described(child, f"{name} {inner}")


WRITTEN = dict(described(get_command(app)))


def test_there_is_something_in_brackets() -> None:
    assert "<name of FILE>" in WRITTEN["compare"]


@pytest.mark.parametrize("command", WRITTEN)
def test_what_stands_in_brackets_is_shown(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "400"})
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    assert {phrase for phrase in WRITTEN[command] if phrase not in text} == set()
