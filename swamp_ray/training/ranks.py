"""Data-parallel ranks of one particle: what they compute together, in an order that never changes.

Each rank is a process of torch's default process group and holds the whole network. The gradient of a step is the
sum of the ranks' gradients in the order of the ranks, in float32, divided by their number once. No bit of it depends on
how the gradient was cut into buckets, and so none on where a training was interrupted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from swamp_ray.errors import LostRankError
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.compact import CompactState
from swamp_ray.training.fork import ForkPoint
from swamp_ray.training.program import TrainingSpec
from swamp_ray.training.results import Arrays
from swamp_ray.user_code.blaming import lost_connection

IDLE = timedelta(days=365)
"""Time limit of an idle rank that blocks until the next instruction; a dead rank shows by its closed connection."""
STOP_INTERVAL_S = 0.1
"""About how often rank 0 tells the others whether to stop."""
_gather_parts: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before 2.14


@dataclass(frozen=True)
class TrainInstruction:
    """Tells the other ranks of a particle to take part in a training run.

    Attributes:
        member: Index of the run, where ranks work for several.
        job, start, mask, buffers, checkpoint, fork: As in :func:`swamp_ray.training.training_run.begin_training`.
    """

    member: int
    job: TrainingSpec
    start: CompactState
    mask: np.ndarray
    buffers: Arrays
    checkpoint: bytes | None
    fork: ForkPoint | None = None


class SingleRank:
    """The only rank of a particle that trains in one process.

    Attributes:
        rank: Number of this one, from 0.
        count: How many there are.
    """

    rank = 0
    count = 1

    def epoch_seed(self, seed: int, epoch: int) -> int:
        """Seed of the global generators in an epoch of a training, for dropout and the like."""
        return derive_seed(seed, "epoch", epoch)

    def share(self, num: int) -> int:
        """How many of so many samples of a batch this rank takes."""
        return num // self.count

    def replicate(self, network: nn.Module, probe: Callable[[], bool]) -> nn.Module:
        """The network as it is called in training.

        Args:
            network: The same on every rank.
            probe: Whether some of its parameters get no gradient.
        """
        return network

    def accumulating(self, network: nn.Module) -> AbstractContextManager[Any]:
        """A block whose gradients stay on their rank, to be added up over the ranks later."""
        return contextlib.nullcontext()

    def watched(self) -> AbstractContextManager[None]:
        """A block that raises LostRankError where another rank is gone."""
        return contextlib.nullcontext()

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over ranks, float64, added up in the order of the ranks."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks in order, on rank 0; None on the others."""
        return [value]


class Ranks(SingleRank):
    """All processes of torch's default group, which has to be there; made on all of them at the same time.

    Args:
        bucket_mb: Size of the pieces in which gradients are exchanged, in MB; it decides no bit.
    """

    def __init__(self, bucket_mb: float = 25.0) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self._bucket_mb = bucket_mb
        # Instructions travel between processors, beside gradients on the devices and without their time limit.
        self._messages: Any = dist.new_group(backend="gloo", timeout=IDLE)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone reads and writes the storage."""
        return self.rank == 0

    def epoch_seed(self, seed: int, epoch: int) -> int:
        """A seed of this rank's own."""
        return derive_seed(seed, "epoch", epoch, self.rank)

    def replicate(self, network: nn.Module, probe: Callable[[], bool]) -> nn.Module:
        """The network wrapped so that backward passes leave the mean gradient of all ranks."""
        replica = _Replica(network, bucket_cap_mb=self._bucket_mb, find_unused_parameters=probe())
        exchange = _Exchange(next(network.parameters()).device)
        replica.register_comm_hook(None, lambda _, bucket: exchange(bucket.buffer()))
        return replica

    def accumulating(self, network: nn.Module) -> AbstractContextManager[Any]:
        """A block whose gradients stay on their ranks."""
        assert isinstance(network, DistributedDataParallel)
        return network.no_sync()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A block that raises LostRankError for errors of the connection."""
        try:
            yield
        except RuntimeError as error:
            if lost_connection(error):
                reason = str(error).strip().partition("\n")[0]
                raise LostRankError(f"rank {self.rank} of {self.count} lost another one: {reason}") from error
            raise

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over ranks, float64."""
        own = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        every = [torch.empty_like(own) for _ in range(self.count)]
        with self.watched():
            dist.all_gather(every, own, group=self._messages)
        return ordered_mean(every).numpy()

    def gather(self, value: Any) -> list[Any] | None:
        """Plain values and tensors on the processor."""
        found: list[Any] | None = [None] * self.count if self.leads else None
        with self.watched():
            dist.gather_object(value, found, dst=0, group=self._messages)
        return found

    def send_instruction(self, instruction: TrainInstruction | None) -> None:
        """Send an instruction to all other ranks (rank 0); None ends their work."""
        with self.watched():
            dist.broadcast_object_list([instruction], src=0, group=self._messages)

    def receive_instruction(self) -> TrainInstruction | None:
        """Block until rank 0 sends the next instruction; None: there will be none."""
        box: list[TrainInstruction | None] = [None]
        with self.watched():
            dist.broadcast_object_list(box, src=0, group=self._messages)
        return box[0]

    def shared_stop(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """A stop function that gives the same answers on all ranks, which have to call it equally often.

        Args:
            stop: Decides, on rank 0 alone.
        """
        return _SharedStop(self, stop)

    def broadcast(self, message: Tensor) -> None:
        """Overwrite a tensor on the processor by that of rank 0."""
        with self.watched():
            dist.broadcast(message, src=0, group=self._messages)


class _SharedStop:
    """Each broadcast says whether to stop, and how many calls to skip before the next broadcast."""

    def __init__(self, ranks: Ranks, stop: Callable[[], bool]) -> None:
        self._ranks = ranks
        self._stop = stop
        self._stopped = False
        self._skip = 0
        self._interval = 1
        self._at = time.monotonic()

    def __call__(self) -> bool:
        if self._stopped:
            return True
        if self._skip:
            self._skip -= 1
            return False
        message = torch.zeros(2, dtype=torch.int64)
        if self._ranks.leads:
            message = torch.tensor([int(self._stop()), self._next_interval()])
        self._ranks.broadcast(message)
        self._stopped = bool(message[0])
        self._interval = int(message[1])
        self._skip = self._interval - 1
        return self._stopped

    def _next_interval(self) -> int:
        """After how many calls the next broadcast is due, from the time that the last ones took."""
        now = time.monotonic()
        call_s = max(1e-6, (now - self._at) / self._interval)
        self._at = now
        return max(1, min(1000, int(STOP_INTERVAL_S / call_s)))


class _Replica(DistributedDataParallel):
    """Has the attributes of the network, which a user's task may read."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


class _Exchange:
    """Adds up one bucket of gradients after the other over the ranks, on CUDA while the backward pass goes on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, flat: Tensor) -> Future[Tensor]:
        if self._stream is None:
            future: Future[Tensor] = Future()
            future.set_result(reduce_in_rank_order_(flat))
            return future
        # One stream, not callbacks: every rank has to start its exchanges in the same order.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            future = Future(devices=[self._device])
            future.set_result(reduce_in_rank_order_(flat))
        return future


def reduce_in_rank_order_(flat: Tensor) -> Tensor:
    """Overwrite a vector by its mean over the ranks of the default group: the traffic of a ring, in a fixed order.

    Args:
        flat: ``[n]`` on each rank.
    """
    count = dist.get_world_size()
    size = -(-flat.numel() // count)
    even = flat.numel() == size * count
    padded = flat if even else F.pad(flat, (0, size * count - flat.numel()))
    slices = torch.empty_like(padded)
    dist.all_to_all_single(slices, padded)
    own = ordered_mean([part.float() for part in slices.view(count, size)]).to(flat.dtype)
    _gather_parts(padded, own)
    return flat if even else flat.copy_(padded[: flat.numel()])


def ordered_mean(parts: list[Tensor]) -> Tensor:
    """The sum of tensors, added from the first to the last, divided by their number; the first is overwritten."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total.div_(len(parts))

