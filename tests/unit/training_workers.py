"""Trains on several gloo workers, each a process of its own: ``training_workers.py`` is one.

Arguments: RANK SIZE FOLDER SCENARIO ... - every scenario trains into ``FOLDER/SCENARIO``.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from terrafine.errors import TerrafineError
from terrafine.storage import Storage
from terrafine.training import patience
from tests.unit.training_scene import (
    Landscape,
    StopAfter,
    pruning_of,
    run,
    small_hrnet,
    tiny_model,
    with_spec,
)

ROOT = Path(__file__).parents[2]

SPECS: dict[str, dict[str, Any]] = {
    "even": {},
    # steps of 3, 3 and 2 crops
    "uneven": {"batch": 3},
    # a step of 7 crops and one of 1
    "short": {"batch": 7},
    # rounds of 2, 2 and 1 crops
    "rounds": {"batch": 5, "micro_batch": 1},
    "hrnet": {},
    "bf16": {"precision": "bf16"},
    "compiled": {"compile": True},
    "apart": {"sync_batch_norm": False},
    "resumed": {"batch": 3, "checkpoint_steps": 1},
    "stopped": {"batch": 3, "checkpoint_steps": 1},
    "elsewhere": {"batch": 3},
    "late": {"batch": 3},
    "pruned": {},
    "unwritable": {},
    "too-many": {"batch": 1},
    "unlabelled": {},
}


def scenario(name: str) -> dict[str, Any]:
    """What differs from ``run``'s own training, built anew."""
    spec = with_spec(**SPECS[name])
    hrnet = name == "hrnet"
    model = small_hrnet() if hrnet else tiny_model(dropout=0.0)
    pruning = {"after_epoch": pruning_of(model)} if name == "pruned" else {}
    return {"model": model, "spec": spec, "epochs": 1 if hrnet else 3, **pruning}


def start(size: int, folder: Path, scenarios: Sequence[str]) -> list[subprocess.Popen[str]]:
    """The workers of a group, started."""
    return [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(size), str(folder), *scenarios],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(workers: Sequence[subprocess.Popen[str]], seconds: float = 200) -> list[str]:
    """What each worker said, once all have ended."""
    try:
        said = [worker.communicate(timeout=seconds)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * len(workers)
        return said
    finally:
        for worker in workers:
            worker.kill()


@contextmanager
def on_worker(name: str, rank: int, folder: Path) -> Iterator[dict[str, Any]]:
    """What differs on one worker."""
    if name == "elsewhere":
        # storage that workers do not share: the first has a checkpoint there already
        patience.SECONDS_TO_APPEAR = 1.0
        yield {"storage": Storage.at(folder / f"elsewhere-{rank}")}
        patience.SECONDS_TO_APPEAR = 90.0
    elif name == "late" and rank == 1:
        # a network file system that shows an older state for a while
        old = folder / "late-1"
        new = partial(shutil.copytree, folder / "late", old, dirs_exist_ok=True)
        threading.Timer(2.0, new).start()
        yield {"storage": Storage.at(old)}
    elif name == "stopped":
        yield {"observer": StopAfter(4)}
    elif name == "unlabelled":
        source = Landscape()
        source.label[:4] = 0
        yield {"source": source}
    elif name == "unwritable" and rank == 0:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        yield {}
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    else:
        yield {}


def main(rank: int, size: int, folder: Path, scenarios: Sequence[str]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    for name in scenarios:
        with on_worker(name, rank, folder) as changes:
            try:
                result = run(folder / name, **(scenario(name) | changes))
            except (TerrafineError, KeyboardInterrupt) as error:
                print(f"{name}: {error}", flush=True)
                continue
            finally:
                dist.barrier()
        torch.save(result.best_state, folder / name / f"best-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
