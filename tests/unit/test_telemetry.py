"""What Prometheus gets to see of a training, scraped over HTTP."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from terrafine.errors import StageError
from terrafine.telemetry import TrainingMetrics, run_port, serve
from terrafine.training import EpochRecord, StepRecord
from tests.unit.training_scene import LEGEND, SPEC, losses, run, tiny_model


def scrape(port: int) -> dict[tuple[str, str], float]:
    """(name, class or "") -> value of the metrics of run "map/train"."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("class", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("run") == "map/train"
    }


def test_a_trainings_figures_can_be_scraped_while_and_after_it_runs(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    metrics = TrainingMetrics("map/train", registry=registry)
    while_training: list[float] = []

    class Scraping:
        def step(self, record: StepRecord) -> None:
            metrics.step(record)
            while_training.append(scrape(port)["terrafine_training_step", ""])

        def epoch(self, record: EpochRecord) -> None:
            metrics.epoch(record)

        def checkpoint(self, step: int) -> None:
            metrics.checkpoint(step)

    with serve(0, registry) as port:
        result = run(tmp_path, model=tiny_model(), epochs=2, observer=Scraping())
        found = scrape(port)
    last = result.history[-1]
    assert while_training == [1, 2, 3, 4]
    steps = {name: found[f"terrafine_training_{name}", ""] for name in ("steps_total", "step")}
    assert steps == {"steps_total": 4, "step": 4}
    assert found["terrafine_training_pixels_total", ""] == 4 * SPEC.batch * SPEC.crop**2
    assert found["terrafine_training_epoch", ""] == 2
    assert found["terrafine_training_loss", ""] == pytest.approx(float(losses(tmp_path)[-1][1]))
    assert 0 < found["terrafine_training_learning_rate", ""] < SPEC.learning_rate
    assert found["terrafine_training_pixels_per_second", ""] > 0
    assert 0 <= found["terrafine_training_loader_wait_ratio", ""] < 1
    assert found["terrafine_training_gpu_memory_bytes", ""] == 0
    assert found["terrafine_training_validation_loss", ""] == last.validation_loss
    assert found["terrafine_training_validation_agreement", ""] == last.validation_agreement
    assert found["terrafine_training_checkpoint_step", ""] == 4
    for name in LEGEND.names:
        recall = found["terrafine_training_validation_recall", name]
        assert recall == last.validation_recall[name]


def test_class_that_validation_has_none_of_has_no_accuracy() -> None:
    registry = CollectorRegistry()
    record = EpochRecord(
        epoch=1,
        learning_rate=0.1,
        train_loss=1.0,
        validation_loss=1.0,
        validation_agreement=0.5,
        validation_recall={"wood": 0.5, "snow/ice": None},
        seconds=1.0,
        pixels_per_second=1.0,
    )
    TrainingMetrics("map/train", registry=registry).epoch(record)
    with serve(0, registry) as port:
        found = scrape(port)
    classes = {c for name, c in found if name == "terrafine_training_validation_recall"}
    assert classes == {"wood"}


def test_port_is_free_again_afterwards_and_a_taken_one_is_named() -> None:
    with serve(0, CollectorRegistry()) as port:
        pass
    with socket.create_server(("", port)):
        says = rf"metrics port {port} is in use; give training\.metrics_port another"
        with pytest.raises(StageError, match=says), serve(port, CollectorRegistry()):
            pass


def test_a_run_whose_spec_names_no_port_takes_that_of_its_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TERRAFINE_RUN_METRICS_PORT", raising=False)
    assert (run_port(None), run_port(9200)) == (None, 9200)
    monkeypatch.setenv("TERRAFINE_RUN_METRICS_PORT", "9102")
    assert (run_port(None), run_port(9200)) == (9102, 9200)


@pytest.mark.parametrize("said", ["metrics", "80", "99999", "-1"])
def test_a_pods_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("TERRAFINE_RUN_METRICS_PORT", said)
    with pytest.raises(StageError, match=f"TERRAFINE_RUN_METRICS_PORT={said}: give a port"):
        run_port(None)
