"""The network compiled by torch trains as the other does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from terrafine.errors import TrainingError
from tests.unit.training_scene import losses, run, same, tiny_model, with_spec
from tests.unit.training_workers import finish, scenario, start


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_network_has_nearly_the_same_loss_curve(tmp_path: Path) -> None:
    model = tiny_model(dropout=0.0)
    run(tmp_path / "eager", model=tiny_model(dropout=0.0), epochs=2)
    result = run(tmp_path / "compiled", model=model, epochs=2, spec=with_spec(compile=True))
    eager, compiled = (
        [float(loss) for _, loss in losses(tmp_path / name)] for name in ("eager", "compiled")
    )
    assert compiled == pytest.approx(eager, rel=1e-3)
    # its weights have the names that everyone else knows
    assert result.best_state.keys() == tiny_model().state_dict().keys()
    # and it goes on from the same checkpoints
    again = run(tmp_path / "compiled", model=tiny_model(seed=5), epochs=2, spec=with_spec())
    assert same(again.best_state, result.best_state)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_compiled_workers_have_nearly_the_loss_curve_of_one(tmp_path: Path) -> None:
    """Batch norm is that of both workers' crops, which the compiler has to leave as it is."""
    finish(start(2, tmp_path, ["compiled"]), seconds=800)
    run(tmp_path / "alone", **scenario("even"))
    together, alone = (
        [float(loss) for _, loss in losses(tmp_path / name)] for name in ("compiled", "alone")
    )
    assert together == pytest.approx(alone, rel=1e-3)


@pytest.mark.slow
def test_machine_that_cannot_compile_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/compiler/here"))
    says = r"cannot compile the network here .*training\.compile to false"
    with pytest.raises(TrainingError, match=says):
        run(tmp_path, model=tiny_model(dropout=0.0), epochs=1, spec=with_spec(compile=True))
