"""Progress that one process makes and another shows."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from terrafine.progress import EVENTS_VARIABLE, announce, forwarded, progress, replay, warn


def test_a_workers_events_arrive_where_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, object]] = []
    with (
        forwarded(lambda event: sent.append(dict(event))),
        progress("train", total=3, unit="step") as task,
    ):
        task.advance()
        task.advance(loss=0.5)
        warn("chip 7 has no label")
        announce(stage="train", state="done")
    events = tmp_path / "events"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    with replay() as show:
        for event in sent:
            show(event)
    written = [json.loads(line) for line in events.read_text().splitlines()]
    assert {"name": "train", "total": 3, "unit": "step", "done": 2, "shown": "loss 0.5"} in written
    assert {"warning": "chip 7 has no label"} in written
    assert {"stage": "train", "state": "done"} in written


def test_a_bar_goes_back_to_what_was_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    """A restarted worker begins its bar anew; where nobody draws, every end is logged."""
    with caplog.at_level(logging.INFO), replay() as show:
        for done in (0, 7, 0, 5, 8):
            show({"name": "train", "total": 8, "unit": "step", "done": done, "shown": ""})
    assert "train: 8/8 step" in caplog.text


def test_nothing_is_forwarded_after_its_end() -> None:
    sent: list[object] = []
    with forwarded(sent.append):
        pass
    announce(stage="label", state="started")
    assert not sent
