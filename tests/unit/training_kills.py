"""Trains, is killed again and again, and says what each kill left: ``training_kills.py FOLDER``.

Arguments: FOLDER SEED KILLS. Every line is JSON: the steps whose checkpoint is whole, and the files
that belong to none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from terrafine.training import TrainingResult
from tests.unit.training_scene import run, tiny_model, with_spec


def train(folder: Path) -> TrainingResult:
    """Six epochs of eight steps; writing a checkpoint takes longer than a step."""
    spec = with_spec(batch=1, checkpoint_steps=1)
    return run(folder, model=tiny_model(ballast=500_000), spec=spec, epochs=6)


def unfinished(folder: Path) -> bool:
    """Whether a file is being staged just now, or a state waits for its digest."""
    names = {path.name for path in folder.glob("checkpoints/*")}
    return any(
        "#" in name or (name.endswith(".pt") and f"{name[:-3]}.json" not in names) for name in names
    )


def killed(folder: Path, seconds: float, *, in_write: bool) -> bool:
    """Train in a process of its own, killed so long after it began to write.

    ``in_write``: not before a checkpoint is being written again.
    """
    child = os.fork()
    if not child:
        train(folder)
        os._exit(0)
    before = {path.name for path in folder.rglob("*")}
    deadline = time.monotonic() + 60
    while {path.name for path in folder.rglob("*")} == before and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(seconds)
    while in_write and not unfinished(folder):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def whole(folder: Path) -> tuple[list[int], list[str]]:
    """Steps whose state has its digest and loads, looked at without terrafine; other files."""
    steps: list[int] = []
    known: set[Path] = set()
    for note in folder.glob("checkpoints/*.json"):
        state = note.with_suffix(".pt")
        if state.exists():
            data = state.read_bytes()
            digest = json.loads(note.read_text())
            if hashlib.sha256(data).hexdigest() == digest["sha256"]:
                assert torch.load(io.BytesIO(data), weights_only=True)["step"] == digest["step"]
                steps.append(digest["step"])
                known |= {note, state}
    rest = sorted(path.name for path in folder.glob("checkpoints/*") if path not in known)
    return sorted(steps), rest


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    target.mkdir(parents=True, exist_ok=True)
    for number in range(int(sys.argv[3])):
        if not killed(target, rng.uniform(0.0, 0.4), in_write=number % 2 == 0):
            break
        print(json.dumps(whole(target)), flush=True)
