"""The label and filter stages around a chip store: anywhere, by any runner, never twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import geopandas
import pytest

from terrafine.chips import BuildGroup, GroupRecord, local_runner, open_chips
from terrafine.errors import StageError
from terrafine.stages import ENGINE, Job
from terrafine.stages.filter import filtered_chips
from terrafine.stages.label import chips_place
from tests.buckets import s3_bucket
from tests.scenes import Project, make_project


def job_of(project: Project) -> Job:
    return Job.open(project.spec, data=None, workdir=project.root / "run")


def test_chips_in_a_bucket_are_found_by_the_stages_after(project: Project) -> None:
    plain = ENGINE.run(job_of(project), "label")
    at_home = chips_place(job_of(project), plain)
    with s3_bucket() as bucket:
        project.change_spec(chips={"storage": f"{bucket}/runs"})
        job = Job.open(project.spec, data=None, workdir=project.root / "elsewhere")
        done = ENGINE.run(job, "label")
        assert done.digest == plain.digest, "where chips lie changes nothing"
        place = chips_place(job, done)
        assert place == f"{bucket}/runs/chips-{done.digest[:12]}"
        table = open_chips(place).table
    assert table.drop(columns="geometry").equals(open_chips(at_home).table.drop(columns="geometry"))


def test_a_killed_label_stage_goes_on_where_it_was(project: Project) -> None:
    built: list[int] = []

    def killed(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        for group in groups[:3]:
            yield build(group)
        raise KeyboardInterrupt

    def noting(build: BuildGroup, groups: Sequence[int]) -> Iterator[GroupRecord]:
        built.extend(groups)
        return map(build, groups)

    with pytest.raises(KeyboardInterrupt):
        ENGINE.run(replace(job_of(project), chip_runner=lambda workers: killed), "label")
    done = ENGINE.run(replace(job_of(project), chip_runner=lambda workers: noting), "label")
    assert built
    assert built[0] == 3
    open_chips(chips_place(job_of(project), done)).verify()


def test_the_spec_says_how_many_processes_cut_chips(project: Project) -> None:
    asked: list[int] = []

    def runner(workers: int) -> object:
        asked.append(workers)
        return local_runner(1)

    project.change_spec(chips={"workers": 3})
    ENGINE.run(replace(job_of(project), chip_runner=runner), "label")
    assert asked == [3]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Job:
    project = make_project(tmp_path_factory.mktemp("filtered"))
    project.change_spec(filter={"min_agreement": 0.7}, training={"preliminary_epochs": 1})
    job = job_of(project)
    for stage in ("label", "train-preliminary", "filter"):
        ENGINE.run(job, stage)
    return job


def test_the_filter_writes_every_chips_agreement_into_a_geoparquet(filtered: Job) -> None:
    done = ENGINE.run(filtered, "filter")
    table = geopandas.read_parquet(filtered.output(done, "chips"))
    store = open_chips(chips_place(filtered, ENGINE.run(filtered, "label")))
    assert list(table["id"]) == list(store.table["id"])
    assert table.crs.to_epsg() == 4326
    train = (table["split"] == "train").to_numpy()
    assert table["agreement"][train].between(0, 1).all()
    assert table["agreement"][~train].isna().all()
    assert (table["kept"] == (table["agreement"] >= 0.7)).all()
    assert done.metrics["kept"] == table["kept"].sum()


def test_a_filter_table_that_cannot_be_read_is_named(filtered: Job) -> None:
    done = ENGINE.run(filtered, "filter")
    path = filtered.output(done, "chips")
    whole = path.read_bytes()
    for damage in (b"", whole[:100], whole[:-10]):
        path.write_bytes(damage)
        with pytest.raises(StageError, match=r"chips\.parquet: cannot be read back"):
            filtered_chips(filtered, done)
    path.write_bytes(whole)
