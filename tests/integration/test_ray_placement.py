"""Maps on a Ray that has less room than they ask for, or loses some: told of, and gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from serving.mapper.runner import RayShardRunner
from serving.ray_cluster import connected
from terrafine.errors import StageError
from terrafine.mapping import ShardReceipt, in_sequence
from tests.integration.test_ray_mapping import arrays, assert_same, mapped, processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("undisturbed")
    mapped(folder, in_sequence)
    return arrays(folder / "map")


def test_with_more_workers_than_processors_those_that_find_room_map_it_all(
    tmp_path: Path, undisturbed, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(cpus=2):
        outcome = mapped(tmp_path, RayShardRunner(5, silence=1.0), pause=0.05)
        assert len(processes(tmp_path)) == 2
    assert outcome.computed == outcome.shards
    assert_same(arrays(tmp_path / "map"), undisturbed)
    assert "of 5 workers have not answered for 1 s" in caplog.text
    assert "each asks one machine for 1 CPU, and all machines together have 2 CPU" in caplog.text


def test_where_no_worker_finds_room_one_sentence_says_what_is_missing(tmp_path: Path) -> None:
    with (
        connected(cpus=2),
        pytest.raises(
            StageError, match=r"none of 2 workers .* 1 CPU and 1 GPU, .* 0 GPU .*map\.predictor"
        ) as raised,
    ):
        mapped(tmp_path, RayShardRunner(2, gpus=1.0, silence=1.0, patience=4.0))
    assert "\n" not in str(raised.value)
    assert mapped(tmp_path, in_sequence).resumed == 0


@pytest.fixture
def two_machines() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_machine_that_is_lost_for_good_leaves_its_shards_to_the_others(
    two_machines: Cluster, tmp_path: Path, undisturbed, caplog: pytest.LogCaptureFixture
) -> None:
    def losing_one(shards, write) -> Iterator[ShardReceipt]:
        receipts = RayShardRunner(2, silence=3.0)(shards, write)
        for receipt in receipts:
            if len(two_machines.worker_nodes) and len(processes(tmp_path)) == 2:
                two_machines.remove_node(next(iter(two_machines.worker_nodes)))
            yield receipt

    outcome = mapped(tmp_path, losing_one, pause=0.1)
    assert not two_machines.worker_nodes, "both machines had been at work"
    assert outcome.computed == outcome.shards
    assert_same(arrays(tmp_path / "map"), undisturbed)
    assert "1 of 2 workers have not answered" in caplog.text
