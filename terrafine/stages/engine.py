"""What every stage shares: its digest, its folder, its manifest, and when it need not run again.

A stage's folder is ``WORKDIR/<stage>/<digest>``; the digest covers the spec sections it reads, the
data files it reads, the stages it stands on and the version of terrafine. Work happens in
``<digest>.partial``, which is renamed once the manifest is in it: a folder without ``.partial`` is
whole. A stage that can go on where it was killed (``resumable``) keeps its partial folder. What was
made while the data changed is dropped.
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
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

import terrafine
from terrafine.chips import BuildRunner, local_runner
from terrafine.errors import StageError, TerrafineError, explain
from terrafine.export import Release, read_description
from terrafine.mapping import MapWatch, Predictor, ShardRunner, in_sequence, local_predictor
from terrafine.progress import announce
from terrafine.raster import catalogue_digest
from terrafine.spec import (
    MappingSpec,
    MapSpec,
    ServeSpec,
    data_root,
    load_spec,
    parse_spec,
    resolve_in,
)
from terrafine.stages.fit import Trainer, fit
from terrafine.status import StageStatus, keep_done, recorded
from terrafine.storage import Storage

T = TypeVar("T")

CATALOGUE = "imagery.catalogue"
"""Stands among a stage's files for all that the catalogue names."""
CHAMPION = "<champion>"
"""Stands among them for the released model."""

Metric = float | int | str

_DIGESTS = TypeAdapter(dict[str, str])
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
        return read_json(path, TypeAdapter(cls))


def one_process(spec: MappingSpec, watch: MapWatch) -> ShardRunner:
    """The map runner without an engine: ``map.workers`` count for nothing."""
    return in_sequence


@dataclass(frozen=True)
class Job:
    """A spec, where its data are, where results go, and which engines carry out a training, build
    chips (for the number of workers the spec wants), map, infer and deploy."""

    spec: MapSpec
    data: Path
    workdir: Path
    trainer: Trainer = fit
    chip_runner: Callable[[int], BuildRunner] = local_runner
    map_runner: Callable[[MappingSpec, MapWatch], ShardRunner] = one_process
    predictor: Callable[[MapSpec, Release, Path], Callable[[], Predictor]] = local_predictor
    deployer: Callable[[Release, ServeSpec], Mapping[str, Metric]] | None = None

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
        if name not in manifest.outputs:
            raise StageError(
                f"the manifest of stage {manifest.stage} names no {name}; run it again"
            )
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
    directory if absolute) and figures. ``cleanup`` takes away, from the stage's finished folder
    and elsewhere, what an interrupted run would have gone on from."""

    outputs: Mapping[str, Path]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    cleanup: Callable[[Path], None] = lambda folder: None


Work = Callable[[Job, Path, Mapping[str, Manifest]], Outcome]


@dataclass(frozen=True)
class Stage:
    """One arrow of the design: what it needs, what it reads and what it does."""

    name: str
    needs: tuple[str, ...] | None
    """stages before it where a model is trained; None: it has no part in that"""
    sections: tuple[str, ...]
    work: Work
    files: Callable[[MapSpec], Sequence[str]] = lambda spec: ()
    more_keys: Callable[[MapSpec], Sequence[str]] = lambda spec: ()
    """keys beside the sections that count in some specs only"""
    needs_with_champion: tuple[str, ...] | None = None
    """the same where the spec names a champion to map with"""
    resumable: bool = False
    result_exists: Callable[[Job, Manifest], bool] = lambda job, manifest: True

    def stands_on(self, spec: MapSpec) -> tuple[str, ...]:
        """Names of the stages before it; StageError where the spec leaves it nothing to do."""
        needs = self.needs if spec.champion is None else self.needs_with_champion
        if needs is not None:
            return needs
        if spec.champion is None:
            raise StageError(f"stage {self.name} needs a spec that names a `champion`; add it")
        raise StageError(
            f"stage {self.name} has nothing to do: the spec maps with the released model "
            f"{spec.champion} (`champion`); leave that out to train one"
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digests(job: Job, stage: Stage) -> dict[str, str]:
    """SHA-256 of each data file the stage reads, remembered by size and time of change, and of
    the catalogue."""
    cache_file = job.workdir / ".source-digests.json"
    cache = read_json(cache_file, _DIGESTS) if cache_file.exists() else {}
    found = {}
    fresh = False
    for name in stage.files(job.spec):
        if name == CATALOGUE:
            found[name] = catalogue_digest(job.spec.imagery, job.data.resolve())
            continue
        if name == CHAMPION:
            # it names every other file by its SHA-256
            description = read_description(champion_place(job))
            found[name] = hashlib.sha256(description).hexdigest()
            continue
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
    if fresh and job.workdir.is_dir():
        _write_text(cache_file, json.dumps(cache))
    return found


def _digest(job: Job, stage: Stage, inputs: Mapping[str, str], sources: Mapping[str, str]) -> str:
    """Of all that a stage's outputs depend on: the digests of the stages before it and of the
    files that it reads, and what the spec says."""
    keys = ("seed", "legend", *stage.sections, *stage.more_keys(job.spec))
    return _sha256(
        {
            "stage": stage.name,
            "terrafine": terrafine.__version__,
            "sections": job.spec.digest(*keys),
            "sources": dict(sources),
            "needs": dict(inputs),
        }
    )


def champion_place(job: Job) -> Storage:
    """Where the released model is that the spec maps with."""
    assert job.spec.champion is not None, "only a stage that stands on a champion asks"
    if "://" in job.spec.champion:
        return Storage.at(job.spec.champion)
    return Storage.at(resolve_in(job.data, job.spec.champion))


class Engine:
    """Runs stages, each once per digest. ``stages``: every one after those it needs."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = {stage.name: stage for stage in stages}

    def names(self, spec: MapSpec) -> list[str]:
        """Stages that have a part in a run of ``spec``, in their order."""
        return [
            name
            for name, stage in self.stages.items()
            if (stage.needs if spec.champion is None else stage.needs_with_champion) is not None
        ]

    def digests(self, job: Job, name: str) -> dict[str, str]:
        """Digest of stage ``name`` and of all it stands on: equal ones give equal outputs."""
        stage = self.stages[name]
        needs = stage.stands_on(job.spec)
        found: dict[str, str] = {}
        for need in needs:
            if need not in found:
                found |= self.digests(job, need)
        inputs = {need: found[need] for need in needs}
        found[name] = _digest(job, stage, inputs, source_digests(job, stage))
        return found

    def find(self, job: Job, name: str) -> Manifest | None:
        """The manifest of a stage that is done for this spec and these data, or None."""
        return self._find(job, name, self.digests(job, name)[name])

    def run(self, job: Job, name: str, upstream: Sequence[Manifest] = ()) -> Manifest:
        """Run a stage unless it is done; its failure is announced before it is raised.

        ``upstream``: manifests handed over by the pipeline, checked to be those of this spec.
        """
        try:
            return self._run(job, name, upstream)
        except (TerrafineError, OSError) as error:
            announce(stage=name, state="failed", error=explain(error))
            raise

    def _run(self, job: Job, name: str, upstream: Sequence[Manifest]) -> Manifest:
        digests = self.digests(job, name)
        for given in upstream:
            if given.digest != digests.get(given.stage):
                raise StageError(
                    f"stage {name} was handed a manifest of {given.stage} that belongs to another "
                    "spec or other data; run the pipeline from its start"
                )
        folder = self._folder(job, name, digests[name])
        done = self._find(job, name, digests[name])
        if done is None:
            needed = self._needed(job, name, digests)
            with _alone(folder):
                # another process may have finished it while this one was looking
                done = self._find(job, name, digests[name])
                if done is None:
                    announce(stage=name, state="started")
                    with recorded(job.workdir, _begun(job, name, digests[name])) as record:
                        done = self._work(job, self.stages[name], digests[name], needed)
                        record.finish(done.metrics, done.seconds)
                    announce(stage=name, state="done", seconds=done.seconds, metrics=done.metrics)
                    return done
        _point(folder)
        keep_done(
            job.workdir, _begun(job, name, done.digest), created=done.created,
            seconds=done.seconds, metrics=done.metrics,
        )  # fmt: skip
        announce(stage=name, state="skipped", metrics=done.metrics)
        return done

    def _find(self, job: Job, name: str, digest: str) -> Manifest | None:
        path = self._folder(job, name, digest) / "manifest.json"
        if not path.exists():
            return None
        manifest = Manifest.read(path)
        return manifest if self.stages[name].result_exists(job, manifest) else None

    def _needed(self, job: Job, name: str, digests: Mapping[str, str]) -> dict[str, Manifest]:
        found = {}
        for need in self.stages[name].stands_on(job.spec):
            manifest = self._find(job, need, digests[need])
            if manifest is None:
                raise StageError(
                    f"stage {name} needs stage {need}, which is not done in {job.workdir} for this "
                    f"spec and these data; run `terrafine {need.replace('train-', 'train --')} "
                    "SPEC` first, or `terrafine run SPEC` for all"
                )
            found[need] = manifest
        return found

    def _work(
        self, job: Job, stage: Stage, digest: str, needed: Mapping[str, Manifest]
    ) -> Manifest:
        folder = self._folder(job, stage.name, digest)
        partial = folder.with_name(folder.name + ".partial")
        if partial.exists() and not stage.resumable:
            shutil.rmtree(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.mkdir(parents=True, exist_ok=True)
        inputs = {name: m.digest for name, m in needed.items()}
        before = source_digests(job, stage)
        started = time.monotonic()
        try:
            outcome = stage.work(job, partial, needed)
            sources = source_digests(job, stage)
            if _digest(job, stage, inputs, sources) != digest:
                shutil.rmtree(partial)
                changed = [name for name, now in sources.items() if now != before[name]]
                raise StageError(
                    f"{job.data}: {', '.join(changed) or 'what is read'} changed while stage "
                    f"{stage.name} worked, so its result was dropped; run it again, and leave the "
                    "data alone meanwhile"
                )
            manifest = Manifest(
                stage=stage.name,
                digest=digest,
                terrafine=terrafine.__version__,
                created=datetime.now(UTC),
                seconds=round(time.monotonic() - started, 2),
                inputs=inputs,
                sources=sources,
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
            outcome.cleanup(folder)
        finally:
            # gone after the rename; a resumable stage keeps what it can go on from
            if partial.exists() and not (stage.resumable and any(partial.iterdir())):
                shutil.rmtree(partial, ignore_errors=True)
        return manifest

    def _folder(self, job: Job, name: str, digest: str) -> Path:
        return job.workdir / name / digest[:12]


def _begun(job: Job, name: str, digest: str) -> StageStatus:
    training = job.spec.training.workers
    most = training if isinstance(training, int) else max(training)
    workers = {
        "label": job.spec.chips.workers,
        **dict.fromkeys(("train-preliminary", "train", "prune"), most),
        "map": job.spec.map.workers,
    }
    return StageStatus.begun(name, digest, serves=job.spec.serve.name, workers=workers.get(name, 1))


def read_json(path: Path, kind: TypeAdapter[T]) -> T:
    """What an earlier stage wrote; StageError when it is gone, cut off or edited."""
    try:
        return kind.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StageError(
            f"{path}: cannot be read back ({type(error).__name__}), it is not as it was "
            "written; delete it and run again"
        ) from error


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
