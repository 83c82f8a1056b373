"""Training steps captured once as CUDA graphs and replayed, each seat on a stream of its own.

A graph holds the kernels of forward and backward pass and is launched as one, so that a small network's step takes as
long as its arithmetic and not as long as Python needs to ask for it. The optimiser's step is a handful of fused kernels
and stays outside, where rates change and masks are applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from swamp_ray.data.trees import leaves, tree_map
from swamp_ray.errors import UserError
from swamp_ray.training.results import Gradients
from swamp_ray.training.tasks import Batch
from swamp_ray.training.trainer import ParticleTrainer

WARM_UP_STEPS = 3
"""Steps before the capture, in which libraries choose algorithms and reserve memory."""


class CapturedStep(Protocol):
    """A step whose inputs and outputs always lie in the same memory.

    Attributes:
        batch: What it reads.
        outputs: Loss and metrics of its last replay.
        gradients: Of the parameters, in order; None for those that the loss does not depend on.
    """

    batch: Batch
    outputs: Gradients
    gradients: list[Tensor | None]

    def replay(self, batch: Batch) -> None:
        """Start the computation for another batch; :meth:`wait` has to come before its results are read."""
        ...

    def wait(self) -> None:
        """Make the current stream wait for the results."""
        ...


class CudaGraphGradients:
    """The joint computation of several trainers' gradients.

    Args:
        trainers: One a seat.
        capture: Captures a trainer's step for batches of the same shapes as an example.
    """

    def __init__(
        self, trainers: Sequence[ParticleTrainer],
        capture: Callable[[ParticleTrainer, Batch], CapturedStep] | None = None,
    ) -> None:
        self._trainers = trainers
        self._capture = capture or CudaGraph
        self._captured: dict[int, CapturedStep] = {}

    def __call__(self, batches: Mapping[int, Batch]) -> dict[int, Gradients]:
        """Leave the gradients of each seat's batch in that seat's parameters."""
        for seat, batch in batches.items():
            if seat not in self._captured:
                self._captured[seat] = self._capture(self._trainers[seat], batch)
        # All replays start before the first result is waited for, so that the streams run side by side.
        for seat, batch in batches.items():
            self._captured[seat].replay(batch)
        return {seat: self._finish(seat) for seat in batches}

    def _finish(self, seat: int) -> Gradients:
        """Wait for a seat's replay, and put its gradients into the parameters."""
        step = self._captured[seat]
        step.wait()
        for parameter, gradient in zip(self._trainers[seat].model.parameters(), step.gradients, strict=True):
            parameter.grad = gradient
        loss, metrics = step.outputs
        # Copies, because the next replay overwrites the values that are summed at the end of the epoch.
        return loss.clone(), {name: value.clone() for name, value in metrics.items()}


class CudaGraph:
    """A trainer's step as a CUDA graph.

    Args:
        trainer: In training mode. Its weights and statistics are as before afterwards.
        batch: An example; later ones have its shapes.

    Raises:
        UserError: The step synchronises with the device, which a graph cannot.
    """

    def __init__(self, trainer: ParticleTrainer, batch: Batch) -> None:
        self.batch = tree_map(torch.clone, batch)
        self._stream: Any = torch.cuda.Stream()
        self._graph: Any = torch.cuda.CUDAGraph()
        parameters = list(trainer.model.parameters())
        buffers = list(trainer.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_STEPS):
                    _clear(parameters)
                    trainer.backward(self.batch)
                _clear(parameters)
            # thread_local: other threads may pin memory meanwhile, which must not end the capture.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self.outputs = trainer.backward(self.batch)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"a training step of {trainer.config.model.name} cannot become a CUDA graph: {reason}",
                            do="Its loss must not read values on the host (.item(), tensor in an if). Or set "
                            "execution.packing: stacked, or particles_per_worker: 1.",
                            where="execution.packing") from error
        self.gradients = [parameter.grad for parameter in parameters]
        _clear(parameters)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    def replay(self, batch: Batch) -> None:
        """Start the computation for another batch on the seat's own stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for place, value in zip(leaves(self.batch), leaves(batch), strict=True):
                place.copy_(value, non_blocking=True)
                value.record_stream(self._stream)
            self._graph.replay()

    def wait(self) -> None:
        """Let the current stream wait for the results."""
        torch.cuda.current_stream().wait_stream(self._stream)


def _clear(parameters: Sequence[Tensor]) -> None:
    """Remove gradients, so that the next backward pass allocates new ones."""
    for parameter in parameters:
        parameter.grad = None
