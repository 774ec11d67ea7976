"""Which trainer a spec asks for."""

from __future__ import annotations

from terrafine.spec import TrainingSpec
from terrafine.stages.fit import Trainer, fit


def trainer_for(spec: TrainingSpec) -> Trainer:
    """This process for one worker, Ray Train for more or for a range of them."""
    if spec.workers == 1:
        return fit
    # ray takes two seconds to import, which other commands need not wait for
    from serving.trainer.ray_trainer import RayTrainer

    return RayTrainer()
