"""Two gloo workers train as one would: real processes, real collectives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from terrafine.errors import TrainingError
from terrafine.storage import Storage
from terrafine.training import TrainingResult, check_workers, read_result
from terrafine.training.norm import GroupBatchNorm, synchronised_batch_norm
from tests.unit.training_scene import StopAfter, losses, run
from tests.unit.training_workers import finish, scenario, start

# folder of the trainings, and the lines that each worker said
Workers = tuple[Path, list[list[str]]]

TOGETHER = [
    "even", "uneven", "short", "rounds", "hrnet", "bf16", "apart", "pruned", "resumed", "late",
    "stopped",
]  # fmt: skip
REFUSED = ["elsewhere", "unwritable", "too-many", "unlabelled"]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Workers:
    """Folder of the trainings of two workers, and the lines that each worker said."""
    folder = tmp_path_factory.mktemp("workers")
    with pytest.raises(KeyboardInterrupt):
        run(folder / "resumed", **scenario("resumed"), observer=StopAfter(4))
    for name in ("elsewhere-0", "late", "late-1"):
        shutil.copytree(folder / "resumed", folder / name)
    for newest in (folder / "late-1").rglob("*4.*"):
        newest.unlink()
    said = finish(start(2, folder, [*TOGETHER, *REFUSED]))
    return folder, [lines.splitlines() for lines in said]


def alone(name: str, folder: Path, **spec: object) -> TrainingResult:
    changes = scenario(name)
    changes["spec"] = changes["spec"].model_copy(update=spec)
    return run(folder, **changes)


def curve(folder: Path) -> list[float]:
    return [float(loss) for _, loss in losses(folder)]


@pytest.mark.parametrize(
    ("name", "on_one"),
    [
        ("even", {}),
        ("uneven", {}),
        ("short", {}),
        # the same rounds: two crops on one worker, or one on each of two
        ("rounds", {"micro_batch": 2}),
        ("hrnet", {}),
        # filters are zeroed after every epoch, batch norm is exchanged for a shared one
        ("pruned", {}),
    ],
)
def test_two_workers_have_the_loss_curve_and_weights_of_one(
    workers: Workers, tmp_path: Path, name: str, on_one: dict[str, object]
) -> None:
    folder = workers[0] / name
    expected = alone(name, tmp_path, **on_one)
    ours, theirs = curve(folder), curve(tmp_path)
    assert ours[:2] == pytest.approx(theirs[:2], rel=2e-6)
    # rounding on either side of a ReLU's kink adds up
    assert ours == pytest.approx(theirs, rel=1e-3)
    found = read_result(Storage.at(folder))
    assert found is not None
    assert found.best_epoch == expected.best_epoch
    for record, other in zip(found.history, expected.history, strict=True):
        assert record.validation_loss == pytest.approx(other.validation_loss, rel=1e-3)
        assert record.validation_agreement == pytest.approx(other.validation_agreement, abs=2e-3)
    for key, value in found.best_state.items():
        torch.testing.assert_close(value, expected.best_state[key], rtol=2e-3, atol=1e-3)


def test_weights_are_the_same_on_both_workers(workers: Workers) -> None:
    for name in TOGETHER[:-1]:
        first, second = (
            torch.load(workers[0] / name / f"best-{rank}.pt", weights_only=True) for rank in (0, 1)
        )
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), (name, key)


def test_batch_norm_apart_takes_another_way(workers: Workers) -> None:
    """The statistics of each worker's own crops: what synchronising is for."""
    assert curve(workers[0] / "apart") != pytest.approx(curve(workers[0] / "even"), rel=2e-3)


def test_half_precision_takes_nearly_the_same_way(workers: Workers) -> None:
    assert curve(workers[0] / "bf16") == pytest.approx(curve(workers[0] / "even"), rel=0.02)


def test_two_workers_go_on_with_what_one_began_and_one_with_what_two_began(
    workers: Workers, tmp_path: Path
) -> None:
    alone("uneven", tmp_path / "whole")
    whole = curve(tmp_path / "whole")
    assert curve(workers[0] / "resumed") == pytest.approx(whole, rel=1e-4)
    assert len(curve(workers[0] / "stopped")) == 4
    shutil.copytree(workers[0] / "stopped", tmp_path / "stopped")
    alone("stopped", tmp_path / "stopped")
    assert curve(tmp_path / "stopped") == pytest.approx(whole, rel=1e-4)
    epochs = json.loads((tmp_path / "stopped" / "history.json").read_text())
    assert [record["epoch"] for record in epochs] == [1, 2, 3]


def test_a_worker_that_sees_an_older_checkpoint_waits_for_the_first_ones(workers: Workers) -> None:
    assert curve(workers[0] / "late") == pytest.approx(curve(workers[0] / "resumed"))


@pytest.mark.parametrize(
    ("name", "leader_says", "other_says"),
    [
        (
            "elsewhere",
            "another worker cannot read the checkpoint of step 4; its own message says why",
            "elsewhere-1/checkpoints/000000004.pt: the first worker goes on from this checkpoint",
        ),
        ("unwritable", "there is no checkpoint yet", "the first worker could not write"),
        ("too-many", *["there are 2 workers for training.batch 1; each needs one at least"] * 2),
        ("unlabelled", *["no pixel of the training chips has a label"] * 2),
    ],
)
def test_every_worker_stops_with_one_sentence(
    workers: Workers, name: str, leader_says: str, other_says: str
) -> None:
    for lines, says in zip(workers[1], (leader_says, other_says), strict=True):
        (line,) = [line for line in lines if line.startswith(f"{name}: ")]
        assert says in line


def test_more_workers_than_chips_are_refused() -> None:
    check_workers(4, batch=4, chips=4)
    with pytest.raises(TrainingError, match=r"5 workers for training chips 4.*4 or fewer"):
        check_workers(5, batch=8, chips=4)


def test_batch_norm_is_itself_again_afterwards() -> None:
    model = scenario("even")["model"]
    before = [(name, id(module)) for name, module in model.named_modules()]
    parameters = [id(value) for value in model.state_dict(keep_vars=True).values()]
    with synchronised_batch_norm(model, torch.device("cpu")):
        kinds = {type(module) for module in model.modules()}
        assert GroupBatchNorm in kinds
        assert torch.nn.BatchNorm2d not in kinds
        assert [id(v) for v in model.state_dict(keep_vars=True).values()] == parameters
    assert [(name, id(module)) for name, module in model.named_modules()] == before
