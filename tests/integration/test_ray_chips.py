"""Chips cut on a real Ray: the same bytes, also where a worker is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from serving.chip_builder import RayBuildRunner
from serving.ray_cluster import connected
from terrafine.chips import BuildGroup, BuildRunner, GroupRecord, build_chips, in_turn
from terrafine.errors import LegendError, StageError
from terrafine.raster import open_class_raster, open_mosaics
from terrafine.spec import load_spec
from tests.scenes import Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(cpus=2):
        yield


@dataclass(frozen=True)
class DiesOnce:
    """A builder that takes its process with it at its second group, the first time."""

    build: BuildGroup
    mark: Path

    def __call__(self, group: int) -> GroupRecord:
        if group == 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.build(group)


def built(project: Project, name: str, runner: BuildRunner) -> dict[str, bytes]:
    """Every file of the chip store that a runner makes."""
    spec = load_spec(project.spec)
    folder = project.root / name
    build_chips(
        folder,
        spec=spec,
        mosaics=open_mosaics(spec.imagery, project.root),
        labels=open_class_raster(spec.labels, spec.resolve_legend(), project.root),
        runner=runner,
    )
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_store_built_on_ray_is_the_same_bytes_though_a_worker_dies(
    cluster: None, tmp_path: Path
) -> None:
    project = make_project(tmp_path)
    mark = tmp_path / "died"

    def dying(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        assert len(groups) > 2, "there is nothing to share out"
        return RayBuildRunner(2)(DiesOnce(build, mark), groups)

    assert built(project, "ray", dying) == built(project, "alone", in_turn)
    assert mark.exists()


def test_with_more_workers_than_processors_those_that_find_room_build_it_all(
    cluster: None, tmp_path: Path
) -> None:
    project = make_project(tmp_path)
    assert built(project, "ray", RayBuildRunner(5)) == built(project, "alone", in_turn)


def test_where_no_worker_finds_room_one_sentence_says_so(cluster: None, tmp_path: Path) -> None:
    @ray.remote(num_cpus=2)
    class Tenant:
        def moved_in(self) -> None: ...

    tenant = Tenant.remote()
    ray.get(tenant.moved_in.remote())
    said = r"no Ray worker has answered for 3 s; each of 2 asks for 1 CPU.* 2 \(0 free\)"
    with pytest.raises(StageError, match=said) as raised:
        built(make_project(tmp_path), "ray", RayBuildRunner(2, patience=3.0))
    ray.kill(tenant)
    assert "\n" not in str(raised.value)


def test_an_error_in_a_worker_keeps_its_sentence(cluster: None, tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.change_spec(labels={"crosswalk": "NLCD"})
    with pytest.raises(LegendError, match=r"product\.tif.*not in crosswalk 'NLCD'") as raised:
        built(project, "ray", RayBuildRunner(2))
    assert "\n" not in str(raised.value)
    assert not (project.root / "ray").exists() or not list((project.root / "ray").iterdir())
