"""Training with SGD as in Dong et al. 2020, section 3.2; CPU and CUDA, one worker and many.

Where torch.distributed is set up, every worker calls :func:`train` and takes its part of every
batch; the steps are those of one worker alone, but for rounding. On the CPU one worker with the
same seed, call and number of threads gives the same weights to the last bit. On CUDA it does not:
the backward pass of bilinear resizing and the two-dimensional cross entropy add up in no fixed
order there. What is drawn at random (crops, their symmetries, the order of chips) is the same
everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from terrafine.errors import LossError, StorageError, TerrafineError, TrainingError, WorkerError
from terrafine.legend import Legend
from terrafine.models.raw import RawModel
from terrafine.spec import TrainingSpec
from terrafine.storage import Storage
from terrafine.training.average import WeightAverage
from terrafine.training.checkpoint import Checkpoint, Checkpoints
from terrafine.training.curves import Curves
from terrafine.training.data import ChipSource, WholeChips, as_indexes
from terrafine.training.evaluate import Evaluation, evaluate
from terrafine.training.feed import read_ahead
from terrafine.training.group import Group
from terrafine.training.history import (
    EpochRecord,
    Observer,
    StepRecord,
    TrainingResult,
    Unobserved,
)
from terrafine.training.learner import Learner, autocast, fitting
from terrafine.training.loss import Confusion, WeightedCrossEntropy, training_loss
from terrafine.training.meter import EpochSums, Meter, Taken, Waiting, gpu_memory
from terrafine.training.norm import synchronised_batch_norm
from terrafine.training.run import Run, choose_device
from terrafine.training.shown import Shown, shown


def train(
    source: ChipSource,
    *,
    train: Sequence[int],
    validation: Sequence[int],
    model: RawModel,
    legend: Legend,
    class_weights: tuple[float, ...],
    confusion: Confusion | None = None,
    spec: TrainingSpec,
    epochs: int,
    seed: int,
    storage: Storage,
    heading: str,
    observer: Observer | None = None,
    after_epoch: Callable[[RawModel], None] | None = None,
    also_identified_by: Mapping[str, object] | None = None,
) -> TrainingResult:
    """Train ``model`` (in place) on crops of the ``train`` chips of ``source``.

    After every epoch the whole ``validation`` chips are predicted; the epoch that agrees most
    with their labels is the best. ``class_weights`` are in output order, as is ``confusion`` of the
    labels (:func:`training_loss`). Pixels that are missing
    or have no label (0) do not count. ``storage`` is a folder of this training's own that every
    worker reaches: the same call on it, with any number of workers, goes on after the last
    checkpoint and ends as if it had never been stopped; beside the checkpoints it holds
    ``steps.csv`` and ``history.json``. ``heading`` stands beside the progress bar. ``observer`` is
    told of every step and epoch. ``after_epoch`` changes the network in place, in the same way on
    every worker, once an epoch is trained and before it is validated and saved: what is validated,
    kept and gone on from is the changed one; there can be no running mean of weights then.
    ``also_identified_by`` is what else (JSON) the outcome depends on: a checkpoint with another
    one is refused.

    Raises TrainingError when the chips cannot be trained on, when they do not fit on the GPU, and
    when a checkpoint is damaged or of another training; LossError when the loss is not a number
    (the last checkpoint stays); StorageError when the storage cannot be read or written;
    WorkerError when a process that reads chips dies, or another worker cannot use the storage.
    """
    device = choose_device(spec.device)
    run = Run(
        source=source,
        chips=as_indexes(train),
        validation=as_indexes(validation),
        model=model.to(device).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        legend=legend,
        class_weights=class_weights,
        confusion=confusion,
        spec=spec,
        epochs=epochs,
        seed=seed,
        device=device,
        group=Group.here(),
        also_identified_by=also_identified_by or {},
    )
    run.check()
    assert after_epoch is None or spec.ema is None, "a mean of weights is not the changed network"
    together = spec.sync_batch_norm and run.group.size > 1
    with (
        _reproducible(device),
        synchronised_batch_norm(model, device) if together else nullcontext(),
        shown(heading, total=epochs * run.plan.steps, group=run.group) as bar,
    ):
        return _Training(run, storage, observer or Unobserved(), bar, after_epoch).result()


def read_result(storage: Storage) -> TrainingResult | None:
    """What the training in ``storage`` has come to: the best of its full epochs until now.

    None before the first full epoch; TrainingError or StorageError when it cannot be read.
    """
    checkpoint = Checkpoints(storage).newest()
    if checkpoint is None or not checkpoint.history:
        return None
    history = tuple(EpochRecord(**record) for record in checkpoint.history)
    return TrainingResult(history, checkpoint.best_epoch, checkpoint.best_state)


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Only deterministic operations on the CPU; the fastest convolutions on CUDA."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    cuda = device.type == "cuda"
    forked = [torch.cuda.current_device()] if cuda else []
    with (
        torch.random.fork_rng(devices=forked),
        torch.backends.cudnn.flags(enabled=True, benchmark=cuda, allow_tf32=True),
    ):
        torch.use_deterministic_algorithms(not cuda)
        # every operation here writes all of its output; filling it first costs a tenth
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            memory.fill_uninitialized_memory = filled


class _Training:
    """A training under way: where it is, and what it has come to."""

    def __init__(
        self,
        run: Run,
        storage: Storage,
        observer: Observer,
        bar: Shown,
        after_epoch: Callable[[RawModel], None] | None,
    ) -> None:
        self.run, self.observer, self.bar, self.after_epoch = run, observer, bar, after_epoch
        self.checkpoints = Checkpoints(storage)
        self.identity = run.identity()
        self.loss = training_loss(run.spec, run.class_weights, run.confusion).to(run.device)
        self.measure = WeightedCrossEntropy(run.class_weights).to(run.device)
        self.step = 0
        self.sums = EpochSums()
        self.history: list[EpochRecord] = []
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.learner = Learner(run.model, self.loss, run.spec, device=run.device, group=run.group)
        self.average = WeightAverage(run.model, run.spec.ema) if run.spec.ema else None
        self._resume()
        self.learner.share()
        self.curves = Curves(storage, resumed_at=self.step) if run.group.leads else None

    @property
    def judged(self) -> RawModel:
        """The network that is validated and kept: the running mean where there is one."""
        return self.run.model if self.average is None else self.average.model

    def result(self) -> TrainingResult:
        """Train what is left."""
        while len(self.history) < self.run.epochs:
            with fitting(self.run.plan.limit, self.run.spec.crop):
                self._epoch(len(self.history) + 1)
        return TrainingResult(tuple(self.history), self.best_epoch, self.best_state)

    def _resume(self) -> None:
        """Take over the newest checkpoint that the first worker sees, on all of them."""
        group, last = self.run.group, None
        with self._together("the first worker cannot use the checkpoints"):
            if group.leads:
                self.checkpoints.storage.sweep()
                last = self.checkpoints.load(self.identity)
        step = group.everywhere(-1 if last is None else last.step, self.run.device)[0]
        if step < 0:
            return
        with self._together(f"another worker cannot read the checkpoint of step {step}"):
            last = last or self.checkpoints.of(step)
        self.run.model.load_state_dict(last.model)
        if self.average is not None:
            self.average.load(last.average)
        self.learner.optimiser.load_state_dict(last.optimiser)
        self.step = last.step
        self.sums = EpochSums(**last.sums)  # type: ignore[arg-type]
        self.history = [EpochRecord(**record) for record in last.history]
        self.best_epoch, self.best_state = last.best_epoch, last.best_state
        self.bar.advance(last.step)

    def _epoch(self, epoch: int) -> None:
        """Train what is left of an epoch, validate, and save."""
        run = self.run
        self._train_epoch(epoch)
        validating = time.perf_counter()
        self._change()
        found = self._validate(epoch)
        sums = self.sums
        record = EpochRecord(
            epoch=epoch,
            learning_rate=run.rate((epoch - 1) * run.plan.steps),
            train_loss=sums.loss / sums.weight,
            validation_loss=found.loss,
            validation_agreement=found.agreement,
            validation_recall=dict(zip(run.legend.names, found.recall, strict=True)),
            seconds=sums.seconds + time.perf_counter() - validating,
            pixels_per_second=sums.pixels / sums.seconds,
            loader_wait=sums.waited / sums.seconds,
            gpu_memory_bytes=gpu_memory(run.device),
        )
        if not self.history or record.beats(self.history[self.best_epoch - 1]):
            self.best_epoch, self.best_state = epoch, _on_cpu(self.judged.state_dict())
        self.history.append(record)
        self.sums = EpochSums()
        self.observer.epoch(record)
        self.bar.show(agreement=record.validation_agreement)
        self._save(epoch_step=0)

    def _train_epoch(self, epoch: int) -> None:
        run, plan = self.run, self.run.plan
        first = self.step - (epoch - 1) * plan.steps
        rounds = {step: plan.rounds(step) for step in range(first, plan.steps)}
        groups = [part.share(run.group) for parts in rounds.values() for part in parts]
        reading = read_ahead(
            run.crops(epoch),
            groups,
            workers=run.spec.loader_workers,
            pin_memory=run.device.type == "cuda",
        )
        run.model.train()
        with closing(reading):
            waiting = Waiting(reading)
            meter = Meter(
                epoch=epoch,
                sums=self.sums,
                group=run.group,
                device=run.device,
                waiting=waiting,
                report=self._report,
                explain=self._explain,
            )
            for epoch_step, parts in rounds.items():
                rate, seed = run.rate(self.step), run.torch_seed(self.step)
                sums = self.learner.step(parts, waiting, rate=rate, seed=seed)
                self.step += 1
                if self.average is not None:
                    self.average.update(self.step)
                pixels = len(plan.positions(epoch_step)) * run.spec.crop**2
                meter.add(Taken(self.step, rate, pixels, sums))
                # at the epoch's end it is saved once it is validated
                if self.step % run.spec.checkpoint_steps == 0 and epoch_step + 1 < plan.steps:
                    meter.look()
                    self._save(epoch_step=epoch_step + 1)
                    meter.restart()
            meter.look()
        if not self.sums.weight:
            raise TrainingError(
                "no pixel of the training chips has a label; check labels.crosswalk and the "
                "overlap of labels and imagery"
            )

    def _change(self) -> None:
        if self.after_epoch is not None:
            self.after_epoch(self.run.model)
            # another processor may round otherwise where it chooses what to change
            self.run.group.copy_from_leader_(p.detach() for p in self.run.model.parameters())

    def _validate(self, epoch: int) -> Evaluation:
        run = self.run
        run.group.copy_from_leader_(self.judged.buffers())
        # about as many pixels at once as in training
        batch = max(1, run.plan.limit * run.spec.crop**2 // run.source.size**2)
        mine = run.group.share(range(len(run.validation)))
        reading = read_ahead(
            WholeChips(run.source, run.validation, run.legend),
            [mine[start : start + batch] for start in range(0, len(mine), batch)],
            workers=run.spec.loader_workers,
            pin_memory=run.device.type == "cuda",
        )
        try:
            with closing(reading):
                return evaluate(
                    self.judged,
                    reading,
                    self.measure,
                    device=run.device,
                    autocast=autocast(run.spec, run.device),
                    group=run.group,
                )
        except LossError as error:
            raise LossError(
                f"epoch {epoch}: {error}; {self._latest_chips()}; {self.checkpoints.kept()}"
            ) from error
        except TrainingError as error:
            raise type(error)(f"epoch {epoch}: {error}; {self.checkpoints.kept()}") from error

    def _report(self, record: StepRecord) -> None:
        if self.curves is not None:
            self.curves.add(record)
        self.observer.step(record)
        self.bar.advance(
            steps=1,
            epoch=f"{record.epoch}/{self.run.epochs}",
            loss=record.loss,
            **{"Mpixel/s": record.pixels_per_second / 1e6},
        )

    def _explain(self, step: int, loss: float) -> LossError:
        """For a loss that is not a number after ``step`` steps."""
        epoch, epoch_step = divmod(step - 1, self.run.plan.steps)
        before = f", after a step on chips {self.run.chips_of(step - 2)}" if step > 1 else ""
        return LossError(
            f"epoch {epoch + 1}, step {epoch_step + 1} ({step} in all): the loss is {loss} on "
            f"chips {self.run.chips_of(step - 1)}{before}; lower training.learning_rate, or look "
            f"at these chips; {self.checkpoints.kept()}"
        )

    def _latest_chips(self) -> str:
        return f"step {self.step} was taken on chips {self.run.chips_of(self.step - 1)}"

    def _save(self, *, epoch_step: int) -> None:
        """Write a checkpoint; no worker goes on before it is safe."""
        with self._together(f"the first worker could not write the checkpoint of step {self.step}"):
            if self.curves is not None:
                self._write(self.curves, epoch_step)
        self.observer.checkpoint(self.step)

    @contextmanager
    def _together(self, otherwise: str) -> Iterator[None]:
        """Where one worker fails in the block all of them do; ``otherwise`` is what others say."""
        failure: TerrafineError | None = None
        try:
            yield
        except TerrafineError as error:
            failure = error
        if any(self.run.group.everywhere(int(failure is not None), self.run.device)):
            raise failure or WorkerError(f"{otherwise}; its own message says why")

    def _write(self, curves: Curves, epoch_step: int) -> None:
        history = [record.model_dump() for record in self.history]
        try:
            curves.write(history)
        except StorageError as error:
            raise StorageError(f"{error}; {self.checkpoints.kept()}") from error
        average = {} if self.average is None else _on_cpu(self.average.model.state_dict())
        checkpoint = Checkpoint(
            identity=self.identity,
            step=self.step,
            epoch_step=epoch_step,
            sums=asdict(self.sums),
            history=history,
            model=_on_cpu(self.run.model.state_dict()),
            average=average,
            optimiser=self.learner.optimiser.state_dict(),
            best_epoch=self.best_epoch,
            best_state=self.best_state,
        )
        try:
            self.checkpoints.save(checkpoint)
        except LossError as error:
            raise LossError(f"{error}; {self._latest_chips()}") from error


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy with plain strides, which is what safetensors takes."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
