"""The KFP pipeline on kfp's local runner, watched: the definition that compiles for a cluster.

Each stage runs in a process of its own and appends what it does to an events file; this process
reads the file and draws it. What kfp and the stages print goes to ``WORKDIR/run.log``.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from kfp import local
from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID

from terrafine.cli.pipeline import Pipeline, defined
from terrafine.errors import StageError
from terrafine.progress import EVENTS_VARIABLE, bars, figures
from terrafine.stages import ENGINE, Job
from terrafine.stages.prepare import require_ready


def run_pipeline(job: Job, pipeline: Pipeline, *, quiet: bool = False) -> None:
    """Run a pipeline to its release or its refusal.

    StageError with the failed stage's own sentence.
    """
    require_ready(ENGINE, job)
    job.workdir.mkdir(parents=True, exist_ok=True)
    with _alone(job):
        _watched(job, _tried_once(defined(pipeline)), quiet)


def _tried_once(pipeline: Any) -> Any:
    """The pipeline without the retries that are meant for a cluster's failures: whoever sits
    before this machine wants to read the reason, not to wait for it to come again."""
    spec = pipeline.pipeline_spec
    for component in (spec.root, *spec.components.values()):
        for task in component.dag.tasks.values():
            task.ClearField("retry_policy")
    return pipeline


def _watched(job: Job, pipeline: Any, quiet: bool) -> None:
    log_file, events = job.workdir / "run.log", job.workdir / ".events"
    events.write_text("")
    watcher = Watcher(events, Console(stderr=True, quiet=quiet))
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(job.workdir / ".kfp"),
        raise_on_error=True,
    )
    with watcher, _environment(EVENTS_VARIABLE, str(events)), log_file.open("w") as log:
        try:
            with contextlib.redirect_stdout(log), warnings.catch_warnings():
                # the image's name does not say "python", and what is meant for a cluster does
                # nothing here: kfp warns about both
                warnings.simplefilter("ignore", RuntimeWarning)
                warnings.simplefilter("ignore", UserWarning)
                pipeline(spec=job.spec.to_yaml(), data=str(job.data), workdir=str(job.workdir))
        except RuntimeError as error:
            watcher.stop()
            reason = watcher.error or f"a step died after stage {watcher.running} began"
            raise StageError(f"{reason} (log: {log_file})") from error


@contextlib.contextmanager
def _alone(job: Job) -> Iterator[None]:
    """One pipeline per work directory: two would draw each other's events."""
    try:
        with FileLock(job.workdir / ".run.lock", timeout=0):
            yield
    except Timeout as error:
        raise StageError(
            f"{job.workdir}: another `terrafine run` is under way here; wait for it, or give this "
            "one a work directory of its own (--workdir)"
        ) from error


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Watcher:
    """Follows an events file and draws stages and progress bars."""

    def __init__(self, events: Path, console: Console) -> None:
        self.error: str | None = None
        self.running = "none"
        self._events = events
        self._bars = bars(console)
        self._tasks: dict[str, TaskID] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watcher:
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Draw what is still unread and let go of the terminal."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            self._bars.stop()

    def _follow(self) -> None:
        with self._events.open(encoding="utf-8") as file:
            rest = ""
            while True:
                last_round = self._over.wait(0.2)
                rest += file.read()
                *lines, rest = rest.split("\n")
                for line in lines:
                    # a line that a full disk cut off tells nothing
                    with contextlib.suppress(json.JSONDecodeError):
                        self._draw(json.loads(line))
                if last_round:
                    return

    def _draw(self, event: dict[str, Any]) -> None:
        if "stage" in event:
            self._stage(event)
            return
        if "warning" in event:
            self._bars.console.print(f"[yellow]![/] {escape(event['warning'])}")
            return
        if "name" not in event:
            return
        task = self._tasks.get(event["name"])
        if task is None:
            task = self._bars.add_task(
                event["name"], total=event["total"], unit=event["unit"], shown=""
            )
            self._tasks[event["name"]] = task
        self._bars.update(task, completed=event["done"], shown=event["shown"])

    def _stage(self, event: dict[str, Any]) -> None:
        stage, state = event["stage"], event["state"]
        if state == "started":
            self.running = stage
            return
        for name in list(self._tasks):
            self._bars.remove_task(self._tasks.pop(name))
        if state == "failed":
            self.error = event["error"]
            self._bars.console.print(f"[red]✗[/] {stage}")
            return
        took = "done before" if state == "skipped" else f"{event['seconds']:.1f} s"
        self._bars.console.print(
            f"[green]✓[/] {stage:<18} {took:>11}  [dim]{figures(event['metrics'])}[/]"
        )
