"""What every stage shares: its digest, its folder, its manifest, and when it need not run again.

A stage's folder is ``WORKDIR/<stage>/<digest>``; the digest covers the spec sections it reads, the
data files it reads, the stages it stands on and the version of terrafine. Work happens in
``<digest>.partial``, which is renamed once the manifest is in it: a folder without ``.partial`` is
whole. A stage that can go on where it was killed (``resumable``) keeps its partial folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

import terrafine
from terrafine.errors import StageError, TerrafineError, explain
from terrafine.progress import announce
from terrafine.spec import MapSpec, data_root, load_spec, parse_spec, resolve_in

Metric = float | int | str

_REPORTED_PACKAGES = (
    "torch",
    "numpy",
    "rasterio",
    "zarr",
    "icechunk",
    "onnx",
    "onnxruntime",
    "kfp",
)


class Manifest(BaseModel):
    """What a stage hands on: where its outputs are, what they came from, and its figures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    digest: str
    terrafine: str
    created: datetime
    seconds: float
    inputs: dict[str, str]
    """stage -> digest"""
    sources: dict[str, str]
    """data file -> SHA-256"""
    outputs: dict[str, str]
    """name -> path relative to the work directory"""
    metrics: dict[str, Metric]
    versions: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file; StageError when it is none."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise StageError(
                f"{path}: not a readable stage manifest ({type(error).__name__}); "
                "delete its folder and run the stage again"
            ) from error


@dataclass(frozen=True)
class Job:
    """A spec, where its data are, and where results go."""

    spec: MapSpec
    data: Path
    workdir: Path

    @classmethod
    def open(cls, spec_file: Path, *, data: Path | None, workdir: Path | None) -> Job:
        """From a spec file; results go to ``runs/<name>`` unless told otherwise."""
        spec = load_spec(spec_file)
        return cls(
            spec, data_root(spec_file, data), (workdir or Path("runs") / spec.name).resolve()
        )

    @classmethod
    def from_text(cls, spec: str, *, data: str, workdir: str) -> Job:
        """From the text of a spec, as a pipeline hands it over."""
        return cls(parse_spec(spec, where="spec"), Path(data).resolve(), Path(workdir).resolve())

    def output(self, manifest: Manifest, name: str) -> Path:
        """Path of one output of a stage; StageError when it is gone."""
        path = resolve_in(self.workdir, manifest.outputs[name])
        if not path.exists():
            raise StageError(
                f"{path}: the {name} that stage {manifest.stage} made is gone; delete the folder "
                f"{self.workdir / manifest.stage} and run that stage again"
            )
        return path


@dataclass(frozen=True)
class Outcome:
    """What a stage's work leaves: outputs (name -> path inside its folder, or in the work
    directory if absolute) and figures."""

    outputs: Mapping[str, Path]
    metrics: Mapping[str, Metric] = field(default_factory=dict)


Work = Callable[[Job, Path, Mapping[str, Manifest]], Outcome]


@dataclass(frozen=True)
class Stage:
    """One arrow of the design: what it needs, what it reads and what it does."""

    name: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    work: Work
    files: Callable[[MapSpec], Sequence[str]] = lambda spec: ()
    resumable: bool = False
    result_exists: Callable[[Job, Manifest], bool] = lambda job, manifest: True


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digests(job: Job, stage: Stage) -> dict[str, str]:
    """SHA-256 of each data file the stage reads, remembered by size and time of change."""
    cache_file = job.workdir / ".source-digests.json"
    cache: dict[str, str] = json.loads(cache_file.read_text()) if cache_file.exists() else {}
    found = {}
    fresh = False
    for name in stage.files(job.spec):
        path = resolve_in(job.data, name)
        if not path.exists():
            raise StageError(
                f"{path}: there is no such file; the spec names {name!r} under the data root "
                f"{job.data} (set --data or TERRAFINE_DATA to the folder that holds it)"
            )
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        parts = []
        for file in files:
            stat = file.stat()
            key = f"{file}|{stat.st_size}|{stat.st_mtime_ns}"
            if key not in cache:
                cache[key], fresh = file_digest(file), True
            parts.append(cache[key])
        found[name] = parts[0] if len(parts) == 1 else _sha256(parts)
    if fresh:
        job.workdir.mkdir(parents=True, exist_ok=True)
        _write_text(cache_file, json.dumps(cache))
    return found


class Engine:
    """Runs stages in order of need, each once per digest."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = {stage.name: stage for stage in stages}

    def digest(self, job: Job, name: str) -> str:
        """Digest of the stage called ``name``: equal digests give equal outputs."""
        stage = self.stages[name]
        return _sha256(
            {
                "stage": name,
                "terrafine": terrafine.__version__,
                "sections": job.spec.digest("seed", "legend", *stage.sections),
                "sources": source_digests(job, stage),
                "needs": {need: self.digest(job, need) for need in stage.needs},
            }
        )

    def find(self, job: Job, name: str) -> Manifest | None:
        """The manifest of a stage that is done for this spec and these data, or None."""
        path = self._folder(job, name) / "manifest.json"
        if not path.exists():
            return None
        manifest = Manifest.read(path)
        return manifest if self.stages[name].result_exists(job, manifest) else None

    def needed(self, job: Job, name: str) -> dict[str, Manifest]:
        """Manifests of the stages that ``name`` stands on; StageError when one is not done."""
        found = {}
        for need in self.stages[name].needs:
            manifest = self.find(job, need)
            if manifest is None:
                raise StageError(
                    f"stage {name} needs stage {need}, which is not done in {job.workdir} for this "
                    f"spec and these data; run `terrafine {need.replace('train-', 'train --')} "
                    "SPEC` first, or `terrafine run SPEC` for all"
                )
            found[need] = manifest
        return found

    def run(self, job: Job, name: str, upstream: Sequence[Manifest] = ()) -> Manifest:
        """Run a stage unless it is done. ``upstream``: manifests handed over by the pipeline,
        checked to be those of this spec."""
        for given in upstream:
            if given.digest != self.digest(job, given.stage):
                raise StageError(
                    f"stage {name} was handed a manifest of {given.stage} that belongs to another "
                    "spec or other data; run the pipeline from its start"
                )
        done = self.find(job, name)
        if done is not None:
            _point(self._folder(job, name))
            announce(stage=name, state="skipped", metrics=done.metrics)
            return done
        announce(stage=name, state="started")
        try:
            needed = self.needed(job, name)
            with _alone(self._folder(job, name)):
                done = self._work(job, self.stages[name], needed)
        except (TerrafineError, OSError) as error:
            announce(stage=name, state="failed", error=explain(error))
            raise
        announce(stage=name, state="done", seconds=done.seconds, metrics=done.metrics)
        return done

    def _work(self, job: Job, stage: Stage, needed: Mapping[str, Manifest]) -> Manifest:
        folder = self._folder(job, stage.name)
        partial = folder.with_name(folder.name + ".partial")
        if partial.exists() and not stage.resumable:
            shutil.rmtree(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            outcome = stage.work(job, partial, needed)
            manifest = Manifest(
                stage=stage.name,
                digest=self.digest(job, stage.name),
                terrafine=terrafine.__version__,
                created=datetime.now(UTC),
                seconds=round(time.monotonic() - started, 2),
                inputs={name: m.digest for name, m in needed.items()},
                sources=source_digests(job, stage),
                outputs={
                    name: str((folder / path).relative_to(job.workdir))
                    for name, path in outcome.outputs.items()
                },
                metrics=dict(outcome.metrics),
                versions=versions(),
            )
            _write_text(partial / "manifest.json", manifest.model_dump_json(indent=2))
            partial.rename(folder)
            _point(folder)
        except BaseException:
            if not stage.resumable or not any(partial.iterdir()):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return manifest

    def _folder(self, job: Job, name: str) -> Path:
        return job.workdir / name / self.digest(job, name)[:12]


def _point(folder: Path) -> None:
    """Let ``<stage>/latest`` point to the result that was asked for last."""
    temporary = folder.with_name(f".latest.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(folder.with_name("latest"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {name: metadata.version(name) for name in _REPORTED_PACKAGES}
    return {"python": platform.python_version(), **found}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the stage's lock, which the operating system drops when the process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(folder.name + ".lock"), timeout=0)
    try:
        with lock:
            yield
    except Timeout as error:
        raise StageError(
            f"{folder}: another process is working on this stage; wait for it, or give this run "
            "a work directory of its own (--workdir)"
        ) from error


def _sha256(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
