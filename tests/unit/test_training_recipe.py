"""What our recipe does otherwise than the paper's: coarse labels, and the mean of the weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

from terrafine.accuracy.published import published_confusion
from terrafine.errors import SpecError
from terrafine.legend import FBP, SEVEN
from terrafine.spec import TrainingSpec, parse_spec
from terrafine.training import TrainingResult
from terrafine.training.average import WeightAverage
from terrafine.training.loss import (
    IGNORED,
    CoarseCrossEntropy,
    WeightedCrossEntropy,
    training_loss,
)
from tests.scenes import SPEC as SCENE_SPEC
from tests.unit.training_scene import StopAfter, run, same, tiny_model, with_spec

WEIGHTS = (1.0, 1.0, 3.0)


def logits_for(target_NHW: torch.Tensor, *, sure: float) -> torch.Tensor:
    """A network that is sure of ``target``."""
    one_hot = torch.nn.functional.one_hot(target_NHW, 3).permute(0, 3, 1, 2)
    return sure * one_hot.float()


def test_with_a_window_of_one_pixel_it_is_the_papers_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 9, 7, generator=generator)
    target = torch.randint(0, 3, (2, 9, 7), generator=generator)
    target[0, :4] = IGNORED
    ours = CoarseCrossEntropy(WEIGHTS, 1)(logits, target)
    papers = WeightedCrossEntropy(WEIGHTS)(logits, target)
    for one, other in zip(ours, papers, strict=True):
        torch.testing.assert_close(one, other)


def test_a_road_inside_a_field_that_the_label_does_not_know_costs_little() -> None:
    label = torch.zeros(1, 9, 9, dtype=torch.int64)
    truth = label.clone()
    truth[:, :, 4] = 2
    seen = logits_for(truth, sure=10.0)
    total, weight = CoarseCrossEntropy((1.0, 1.0, 1.0), 3)(seen, label)
    plain, _ = WeightedCrossEntropy((1.0, 1.0, 1.0))(seen, label)
    assert total / weight < 0.2
    assert plain / weight > 1


def test_a_whole_field_of_another_class_costs_as_much_as_ever() -> None:
    label = torch.zeros(1, 9, 9, dtype=torch.int64)
    seen = logits_for(torch.full_like(label, 1), sure=10.0)
    total, _ = CoarseCrossEntropy((1.0, 1.0, 1.0), 3)(seen, label)
    plain, _ = WeightedCrossEntropy((1.0, 1.0, 1.0))(seen, label)
    torch.testing.assert_close(total, plain)


def test_certainty_of_the_wrong_class_gives_a_finite_loss_and_gradient() -> None:
    label = torch.zeros(1, 5, 5, dtype=torch.int64)
    seen = logits_for(torch.full_like(label, 1), sure=1e4).requires_grad_()
    total, _ = CoarseCrossEntropy(WEIGHTS, 3)(seen, label)
    total.backward()
    assert torch.isfinite(total)
    assert seen.grad is not None
    assert torch.isfinite(seen.grad).all()


def test_pixels_without_a_label_do_not_count() -> None:
    label = torch.full((1, 5, 5), IGNORED)
    total, weight = CoarseCrossEntropy(WEIGHTS, 3)(torch.randn(1, 3, 5, 5), label)
    assert total == 0
    assert weight == 0


# row = true class, column = what the label says
HALF_OF_ONE_CALLED_ZERO = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.0, 0.0, 1.0))


def test_a_network_that_is_right_where_the_label_errs_as_known_is_not_punished() -> None:
    """Half of what is class 1 is labelled 0: saying 1 there costs log 2, as little as can be."""
    label = torch.zeros(1, 5, 5, dtype=torch.int64)
    right = logits_for(torch.full_like(label, 1), sure=20.0)
    known, weight = CoarseCrossEntropy((1.0,) * 3, 1, HALF_OF_ONE_CALLED_ZERO)(right, label)
    unknown, _ = CoarseCrossEntropy((1.0,) * 3, 1)(right, label)
    assert known / weight == pytest.approx(math.log(2), rel=1e-3)
    assert unknown / weight > 10


def test_what_is_best_under_known_confusion_is_the_truth_and_not_the_labels() -> None:
    """Of a uniform ground of class 1, 55 % is labelled 0 and the rest 1: alone, the majority wins;
    with the confusion known, the share of class 1 that explains the labels best is 0.9."""
    label = torch.zeros(1, 10, 10, dtype=torch.int64)
    label[0].view(-1)[:45] = 1

    def best(loss: torch.nn.Module) -> torch.Tensor:
        logits = torch.zeros(3, requires_grad=True)
        optimiser = torch.optim.SGD([logits], lr=0.05)
        for _ in range(800):
            optimiser.zero_grad()
            total, _ = loss(logits.view(1, 3, 1, 1).expand(1, 3, 10, 10), label)
            (total / 100).backward()
            optimiser.step()
        return logits.detach().softmax(dim=0)

    assert best(CoarseCrossEntropy((1.0,) * 3, 1)).argmax() == 0
    assert best(CoarseCrossEntropy((1.0,) * 3, 1, HALF_OF_ONE_CALLED_ZERO)).argmax() == 1


def test_the_published_confusion_is_of_its_product_and_its_classes_alone() -> None:
    known = published_confusion("FROM-GLC10", SEVEN)
    assert known is not None
    for row in known:
        assert sum(row) == pytest.approx(1)
        assert min(row) > 0, "rare is not impossible"
    grass, crop = SEVEN.names.index("grassland"), SEVEN.names.index("cropland")
    # Table 2: 32 of 301 points in grassland are called cropland
    assert known[grass][crop] == pytest.approx(32 / 301, abs=0.005)
    assert published_confusion("NLCD", SEVEN) is None
    assert published_confusion({10: "cropland"}, SEVEN) is None
    assert published_confusion("FROM-GLC10", FBP) is None


def test_the_spec_chooses_the_loss() -> None:
    assert type(training_loss(TrainingSpec(), WEIGHTS)) is WeightedCrossEntropy
    chosen = training_loss(TrainingSpec(label_window=5), WEIGHTS)
    assert isinstance(chosen, CoarseCrossEntropy)
    assert chosen.window == 5
    corrected = training_loss(TrainingSpec(), WEIGHTS, HALF_OF_ONE_CALLED_ZERO)
    assert isinstance(corrected, CoarseCrossEntropy)
    assert corrected.confusion is not None


def test_an_even_window_is_refused_with_the_remedy() -> None:
    text = yaml.safe_dump({**SCENE_SPEC, "training": {"label_window": 4}})
    with pytest.raises(SpecError, match=r"training\.label_window.*4 is even.*take 5"):
        parse_spec(text, where="spec.yaml")


def test_the_mean_follows_the_weights_and_forgets_the_first_ones() -> None:
    model = tiny_model()
    weight = next(model.network.parameters())
    average = WeightAverage(model, 0.5)
    mean = next(average.model.network.parameters())
    start = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    average.update(1)
    # (1 + 1) / (10 + 1) is less than the decay asked for
    torch.testing.assert_close(mean, start + (1 - 2 / 11))
    with torch.no_grad():
        weight.add_(1.0)
    average.update(100)
    torch.testing.assert_close(mean, (start + (1 - 2 / 11) + start + 2) / 2)
    assert not mean.requires_grad


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return run(tmp_path_factory.mktemp("averaged"), spec=with_spec(ema=0.9))


def test_what_is_kept_is_the_mean_and_not_the_weights(
    averaged: TrainingResult, tmp_path: Path
) -> None:
    plain = run(tmp_path)
    assert averaged.history[0].train_loss == plain.history[0].train_loss
    assert averaged.history[-1].validation_loss != plain.history[-1].validation_loss
    assert not same(averaged.best_state, plain.best_state)


def test_a_stopped_training_goes_on_with_the_mean_it_had(
    averaged: TrainingResult, tmp_path: Path
) -> None:
    spec = with_spec(ema=0.9, checkpoint_steps=1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, spec=spec, observer=StopAfter(3))
    resumed = run(tmp_path, spec=spec)
    assert same(resumed.best_state, averaged.best_state)


def test_the_papers_recipe_changes_no_default() -> None:
    spec = parse_spec(yaml.safe_dump({**SCENE_SPEC, "recipe": "dong2020"}), where="spec.yaml")
    assert spec.training.label_window == 1
    assert spec.training.ema is None
    assert spec.training.class_weights == {"impervious": 3.0}


def test_the_specs_own_keys_win_over_the_recipe() -> None:
    ours = parse_spec(yaml.safe_dump(SCENE_SPEC), where="spec.yaml")
    assert ours.recipe == "terrafine", "where a spec starts from"
    assert ours.training.label_window == 3
    assert ours.training.label_confusion == "published"
    assert ours.training.class_weights == {}
    assert ours.training.batch == SCENE_SPEC["training"]["batch"]
    own = {**SCENE_SPEC, "training": {**SCENE_SPEC["training"], "label_window": 1}}
    assert parse_spec(yaml.safe_dump(own), where="spec.yaml").training.label_window == 1


def test_a_spec_written_out_reads_back_as_itself() -> None:
    for recipe in ("dong2020", "terrafine"):
        spec = parse_spec(yaml.safe_dump({**SCENE_SPEC, "recipe": recipe}), where="spec.yaml")
        assert parse_spec(spec.to_yaml(), where="again") == spec


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(SpecError, match="recipe"):
        parse_spec(yaml.safe_dump({**SCENE_SPEC, "recipe": "dong"}), where="spec.yaml")
