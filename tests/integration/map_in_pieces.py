"""Map the generated scene in a process of its own, which may kill itself: STORE LOG DIE_AFTER.

Each shard that is computed is a line of LOG. After DIE_AFTER shards the process kills itself with
SIGKILL (0: never), in the middle of whatever the driver would have done next.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path

from terrafine.legend import SEVEN
from terrafine.mapping import MapOutcome, ShardKey, ShardReceipt, map_all
from tests.imagery import QuickPredictor, small_spec, two_scenes


def map_scene(store: Path, log: Path, *, die_after: int = 0, pause: float = 0.0) -> MapOutcome:
    """Map with waves of three shards, writing down every shard that is computed."""

    def watched(
        shards: Iterable[ShardKey], write: Callable[[ShardKey], ShardReceipt]
    ) -> Generator[ShardReceipt]:
        for done, key in enumerate(shards, 1):
            result = write(key)
            with log.open("a") as file:
                file.write(f"{key[1].row} {key[1].col}\n")
            time.sleep(pause)
            yield result
            if done == die_after:
                os.kill(os.getpid(), signal.SIGKILL)

    imagery, spec = two_scenes(), small_spec()
    return map_all(
        store,
        {imagery.zone: imagery},
        partial(QuickPredictor, spec.window),
        spec=spec,
        legend=SEVEN,
        scenes=("upper", "lower"),
        model_digest="m",
        spec_digest="s",
        run=watched,
    )


if __name__ == "__main__":
    map_scene(Path(sys.argv[1]), Path(sys.argv[2]), die_after=int(sys.argv[3]), pause=0.02)
