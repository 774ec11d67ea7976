"""A RayJob is made from the cluster's template and a run's order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from serving.rayjob.template import (
    STAGES,
    Order,
    deadline_of,
    filled,
    read_template,
    this_pod,
)
from terrafine.errors import StageError
from tests.unit.test_rayjob_launcher import ORDER, TEMPLATE


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("run", ["", "8c2f3f9e-1b2c", "run_Of.Somebody/Else " * 9, "---"])
def test_a_rayjobs_name_is_one_that_kuberay_takes(stage: str, run: str) -> None:
    order = Order(stage, "name: a\n", "/work/data", "/work/runs/a", run)
    assert len(order.name) <= 47
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", order.name)
    for label in filled(TEMPLATE, order, [])["metadata"]["labels"].values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", label)


def test_the_same_order_has_the_same_name_and_another_one_another() -> None:
    def order(**changes: str) -> Order:
        given = {"stage": "map", "spec": "a", "data": "/d", "workdir": "/w", "run": "1"}
        return Order(**{**given, **changes})

    others = [{"stage": "train"}, {"spec": "b"}, {"data": "/e"}, {"workdir": "/v"}, {"run": "2"}]
    names = {order().name, *(order(**change).name for change in others)}
    assert order().name == order().name
    assert len(names) == len(others) + 1


def test_the_entrypoint_is_the_command_line_over_the_same_folders() -> None:
    order = Order("train-preliminary", "a", "/work/my data", "/work/runs/a; rm")
    assert shlex.split(order.entrypoint) == [
        "terrafine", "--log-level", "info", "train", "--preliminary", str(order.spec_file),
        "--data", "/work/my data", "--workdir", "/work/runs/a; rm",
    ]  # fmt: skip
    assert order.spec_file.parent == Path("/work/runs/a; rm/specs")


def test_the_rest_of_the_template_stays_as_the_cluster_wrote_it() -> None:
    made = filled(TEMPLATE, ORDER, [])
    assert {**made["spec"], "entrypoint": "replaced"} == TEMPLATE["spec"]
    assert "ownerReferences" not in made["metadata"]
    assert TEMPLATE["metadata"]["name"] == "terrafine-map"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "map.yaml: no RayJob template can be read"),
        ("a: [", "map.yaml: no RayJob template can be read"),
        ("- a", "replace it"),
        ("apiVersion: ray.io/v1\nkind: RayCluster\nspec: {}\n", r"is ray.io/v1 RayCluster"),
        ("apiVersion: ray.io/v1\nkind: RayJob\n", "with a spec"),
    ],
)
def test_what_is_no_template_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(StageError, match=says):
        read_template(tmp_path, "map")


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_finds_its_template(tmp_path: Path, stage: str) -> None:
    (tmp_path / f"{stage.removesuffix('-preliminary')}.yaml").write_text(yaml.safe_dump(TEMPLATE))
    assert read_template(tmp_path, stage) == TEMPLATE


@pytest.mark.parametrize(("said", "seconds"), [({}, 604800.0), ({"annotations": None}, 604800.0)])
def test_nobody_waits_for_ever(said: dict[str, None], seconds: float) -> None:
    assert deadline_of({"metadata": said}) == seconds


@pytest.mark.parametrize("said", ["soon", "0", "-5", "nan"])
def test_a_deadline_is_a_number_of_seconds(said: str) -> None:
    with pytest.raises(StageError, match="give seconds above 0"):
        deadline_of({"metadata": {"annotations": {"terrafine.io/deadline-seconds": said}}})


def test_the_pipelines_pod_owns_what_it_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "kfp-pod")
    monkeypatch.delenv("POD_UID", raising=False)
    assert this_pod() == []
    monkeypatch.setenv("POD_UID", "11-22")
    (owner,) = this_pod()
    assert (owner["name"], owner["uid"]) == ("kfp-pod", "11-22")
