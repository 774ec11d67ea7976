"""One optimiser step, taken by all workers together as if by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from terrafine.errors import TrainingError
from terrafine.models.raw import RawModel
from terrafine.spec import TrainingSpec
from terrafine.training.data import Batch
from terrafine.training.group import Group
from terrafine.training.loss import counted_target
from terrafine.training.plan import Round


def autocast(spec: TrainingSpec, device: torch.device) -> AbstractContextManager[None]:
    """bf16 where the spec asks for it, or on CUDA."""
    reduced = spec.precision == "bf16" or (spec.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=reduced)


@contextmanager
def fitting(crops: int, size: int) -> Iterator[None]:
    """TrainingError where the GPU has no memory for ``crops`` crops of ``size`` pixels a side."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = (
            f"training.micro_batch (now {crops})" if crops > 1 else f"training.crop (now {size})"
        )
        raise TrainingError(
            f"{crops} crops of {size} x {size} pixels at once do not fit on the GPU "
            f"({str(error).partition('. GPU')[0]}); lower {remedy}"
        ) from error


class Learner:
    """A network with its loss and optimiser, on one worker of ``group``."""

    def __init__(
        self,
        model: RawModel,
        loss: nn.Module,
        spec: TrainingSpec,
        *,
        device: torch.device,
        group: Group,
    ) -> None:
        self.model = model
        self.loss = loss
        self.device = device
        self.group = group
        self._spec = spec
        self.optimiser = torch.optim.SGD(
            model.parameters(),
            lr=spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            fused=True,
        )
        self._forward: nn.Module = _Forward(model, compiled=spec.compile)

    def share(self) -> None:
        """Give all workers the leader's weights, and exchange gradients from now on."""
        if self.group.size > 1:
            # batch norm is synchronised in the forward pass, or else the leader's is the one
            self._forward = DistributedDataParallel(
                self._forward, forward_sync_buffers=False, gradient_as_bucket_view=True
            )

    def step(
        self, rounds: Sequence[Round], batches: Iterator[Batch], *, rate: float, seed: int
    ) -> Tensor:
        """Take one step on the next batch for each round, with learning rate ``rate``.

        ``seed`` is for what the network itself draws (dropout). Returns the sum of the loss and
        the sum of the weights over all crops of all workers (2,) float64.
        """
        torch.manual_seed(seed)
        for options in self.optimiser.param_groups:
            options["lr"] = rate
        self.optimiser.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for left, part in zip(range(len(rounds) - 1, -1, -1), rounds, strict=True):
            with self._apart() if left else nullcontext():
                sums += self._backward(*next(batches), repeats=part.repeats)
        self.group.sum_(sums)
        self._divide_gradients(sums[1])
        self.optimiser.step()
        return sums

    def _apart(self) -> AbstractContextManager[None]:
        """Gradients are added up here and exchanged later."""
        if isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()

    def _backward(self, image: Tensor, labels: Tensor, *, repeats: int) -> Tensor:
        with autocast(self._spec, self.device):
            logits, valid = self._forward(image.to(self.device, non_blocking=True))
        target = counted_target(labels.to(self.device, non_blocking=True), valid)
        total, weight = self.loss(logits, target)
        (total / repeats).backward()
        return torch.stack([total.detach(), weight.detach()]).double() / repeats

    def _divide_gradients(self, weight: Tensor) -> None:
        """From sums to the mean over the step; workers' gradients are their mean until now."""
        # a step without any labelled pixel has loss 0, and moves nothing but the momentum
        scale = self.group.size / torch.where(weight > 0, weight, 1.0)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, scale.float())


class _Forward(nn.Module):
    """Raw windows -> (logits, valid), as what DistributedDataParallel wraps."""

    def __init__(self, model: RawModel, *, compiled: bool) -> None:
        super().__init__()
        self.model = model
        network: Callable[[Tensor], Tensor] = (
            _explained(torch.compile(model.network)) if compiled else model.network
        )
        # in a tuple, so that torch does not count its parameters twice
        self._network = (network,)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scaled, valid = self.model.raw(image)
        return self._network[0](scaled), valid


def _explained(compiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """TrainingError where the network cannot be compiled: that shows when it is first called."""
    from torch._dynamo.exc import TorchDynamoException

    def call(scaled: Tensor) -> Tensor:
        try:
            return compiled(scaled)
        except TorchDynamoException as error:
            raise TrainingError(
                f"torch cannot compile the network here ({str(error).splitlines()[0]}); install a "
                "C++ compiler, or set training.compile to false"
            ) from error

    return call
