"""Training with filters zeroed after every epoch: the zeroed network is what counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from terrafine.errors import TrainingError
from terrafine.models import RawModel
from terrafine.pruning import plan_pruning, without_zeroed
from terrafine.spec import PruneSpec
from terrafine.storage import Storage
from terrafine.training.checkpoint import Checkpoints
from tests.unit.training_scene import StopAfter, pruning_of, run, same, tiny_model, with_spec

# convolution, its batch norm
LAYERS = (("network.0", "network.1"), ("network.3", "network.4"))


def zeroed(state: dict[str, Tensor]) -> list[int]:
    """Filters that are zero with their shift and running mean, layer by layer."""
    found = []
    for conv, norm in LAYERS:
        weight = state[f"{conv}.weight"].flatten(1)
        others = [state[f"{norm}.{name}"] for name in ("bias", "running_mean")]
        found.append(int((~weight.any(1) & (others[0] == 0) & (others[1] == 0)).sum()))
    return found


def test_what_is_kept_is_what_was_validated_with_its_filters_zeroed(tmp_path: Path) -> None:
    model = tiny_model()
    seen: list[list[int]] = []
    prune = pruning_of(model)

    def after_epoch(trained: RawModel) -> None:
        seen.append(zeroed(trained.state_dict()))
        prune(trained)

    result = run(tmp_path, model=model, after_epoch=after_epoch)
    assert zeroed(result.best_state) == [4, 4]
    newest = Checkpoints(Storage.at(tmp_path)).newest()
    assert newest is not None
    assert zeroed(newest.model) == [4, 4]
    assert seen == [[0, 0]] * 4, "filters come back while the network is trained on"
    model.load_state_dict(result.best_state)
    plan = plan_pruning(model.network, PruneSpec(ratio=0.5), bands=2)
    compact = without_zeroed(model.network.eval(), plan)
    image = torch.randn(1, 2, 48, 48)
    assert torch.allclose(compact(image), model.network(image), atol=1e-5)


@pytest.mark.parametrize("steps", [3, 4], ids=["in an epoch", "between two epochs"])
def test_a_stopped_one_goes_on_and_ends_the_same(tmp_path: Path, steps: int) -> None:
    whole = run(tmp_path / "whole", model=(m := tiny_model()), after_epoch=pruning_of(m))
    every = with_spec(checkpoint_steps=1)
    model = tiny_model()
    with pytest.raises(KeyboardInterrupt):
        run(
            tmp_path / "stopped",
            model=model,
            spec=every,
            after_epoch=pruning_of(model),
            observer=StopAfter(steps),
        )
    model = tiny_model(seed=8)
    resumed = run(tmp_path / "stopped", model=model, spec=every, after_epoch=pruning_of(model))
    assert same(resumed.best_state, whole.best_state)


def test_a_checkpoint_with_another_lineage_is_refused(tmp_path: Path) -> None:
    run(tmp_path, epochs=1, also_identified_by={"pruning": "0.4", "first_weights": "a"})
    run(tmp_path, epochs=1, also_identified_by={"pruning": "0.4", "first_weights": "a"})
    for other, says in (
        ({"pruning": "0.5", "first_weights": "a"}, "its pruning is not the same"),
        ({"pruning": "0.4", "first_weights": "b"}, "its first weights is not the same"),
    ):
        with pytest.raises(TrainingError, match=says):
            run(tmp_path, epochs=1, also_identified_by=other)
