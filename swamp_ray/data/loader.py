"""Samples that are read one by one: by processes that stay between passes, and copied to the device ahead of use."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from swamp_ray.data.samples import Data, LazySamples
from swamp_ray.data.trees import leaves, named_leaves, tree_map
from swamp_ray.errors import RunError, SwampError, UserError
from swamp_ray.random_state import seeded
from swamp_ray.seeding import derive_seed
from swamp_ray.user_code.importing import own_traceback

MIN_PART, MAX_PART = 16, 64
"""Samples that a process reads at a time: enough to make its messages cheap, few enough to share a batch out."""
PREFETCH = 4
"""Parts that a process reads ahead."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a batch, to be read by one process.

    Attributes:
        number: Of the pass, among those of the same processes.
        split: Position of the samples among those that the processes hold.
        seed: Of the pass; None: no augmentation.
        rows: Indices into the dataset, int64 ``[n]``.
    """

    number: int
    split: int
    seed: int | None
    rows: np.ndarray


@dataclass(frozen=True)
class _Refusal:
    """An error whose text is for the user, on its way between processes without their traceback."""

    error: SwampError


class _Reader(Dataset[Any]):
    """Reads parts of batches, each sample under random generators seeded by the pass and the sample.

    Args:
        splits: What can be read.
        current: Number of the pass that is going on, int64 ``[1]``, in memory that the processes share.
    """

    def __init__(self, splits: Sequence[LazySamples], current: Tensor) -> None:
        self._splits, self._current = splits, current

    def __getitems__(self, part: _Part) -> Any:
        """The collated samples of a part; None where its pass is over and nobody waits for it."""
        samples, found = self._splits[part.split], []
        for row in part.rows.tolist():
            if int(self._current) != part.number:
                return None
            found.append(read_sample(samples, row, part.seed))
        return batch_of(samples, found, part.rows)


class _Process(_Reader):
    """The reader as another process has it."""

    def __getitems__(self, part: _Part) -> Any:
        try:
            return super().__getitems__(part)
        except SwampError as error:
            return _Refusal(error)


def read_sample(samples: LazySamples, row: int, seed: int | None) -> Any:
    """One sample, transformed; its random numbers follow from the pass's seed and its row, whoever reads it."""
    transform = samples.eval_transform if seed is None else samples.train_transform
    dataset = samples.plain if seed is None and samples.plain is not None else samples.dataset
    try:
        with seeded(derive_seed(0 if seed is None else seed, "sample", row)):
            sample = dataset[row]
            return sample if transform is None else transform(sample)
    except (SwampError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"sample {row} of the dataset {type(dataset).__name__} cannot be read", where="data.name",
                        do=f"Its own error:\n{own_traceback(error)}") from error


def batch_of(samples: LazySamples, found: list[Any], rows: np.ndarray) -> Any:
    """Samples put together, in the form that the task reads.

    Raises:
        UserError: They do not fit together.
    """
    try:
        batch = collate(found)
    except Exception as error:
        raise UserError(f"samples {rows[0]} to {rows[-1]} of the dataset {type(samples.dataset).__name__} cannot be "
                        "stacked", where="data.name", do=f"The error:\n{own_traceback(error)}") from error
    return batch if samples.form is None else samples.form(batch)


def _nothing() -> Iterator[_Part]:
    return iter(())


class _Plan:
    """What the processes read next; a DataLoader asks for it at the start of each pass."""

    def __init__(self) -> None:
        self.parts: Callable[[], Iterator[_Part]] = _nothing

    def __iter__(self) -> Iterator[_Part]:
        return self.parts()


class _Pool:
    """Processes that read for one pass at a time, and stay for the next."""

    def __init__(self, splits: Sequence[LazySamples], num_processes: int, pinned: bool) -> None:
        self._current = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._plan = _Plan()
        self._processes: Any = None
        self._loader: DataLoader[Any] = DataLoader(
            _Process(splits, self._current),
            batch_sampler=self._plan,  # type: ignore[arg-type]
            num_workers=num_processes,
            prefetch_factor=PREFETCH,
            persistent_workers=True,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            worker_init_fn=_settle,
            generator=torch.Generator().manual_seed(0),  # otherwise it would draw from the global generator
        )

    def read(self, parts: Callable[[int], Iterator[_Part]]) -> Iterator[Any]:
        """The collated samples of each part, in order, given the number of the pass."""
        self.let_go()
        number = int(self._current)
        self._plan.parts = lambda: parts(number)
        self._processes = iter(self._loader)
        for found in self._processes:
            if isinstance(found, _Refusal):
                raise found.error
            yield found

    def let_go(self) -> None:
        """The pass is over: what is still to be read for it is left out."""
        self._current += 1
        self._plan.parts = _nothing

    def alive(self) -> bool:
        """Whether no process has died."""
        return self._processes is None or all(process.is_alive() for process in self._processes._workers)

    def close(self) -> None:
        """End the processes."""
        self.let_go()
        if self._processes is not None:
            self._processes._shutdown_workers()  # DataLoader has no other way than to lose the last reference


def _as_it_is(found: Any) -> Any:
    return found


def _settle(_process: int) -> None:
    """Make a new process independent of the one that it was forked from."""
    # Ctrl-C reaches the whole process group, and whoever asked for samples may want to finish a step first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What it has inherited must not be torn down here, other pools above all; and its memory stays shared.
    gc.freeze()


class Loader:
    """Reads the splits of a dataset in processes of its own, which stay until nobody needs the loader any more.

    A pass has all processes. One that begins while others go on, as those of packed particles do, has its share.

    Args:
        splits: All that will be read; processes get them once, when they start.
        num_processes: At most so many, and one a core; 0: reads in this process.
        pinned: Give tensors in pinned memory.
    """

    def __init__(self, splits: Sequence[LazySamples], num_processes: int, pinned: bool = False) -> None:
        self._splits, self._pinned = tuple(splits), pinned
        self.num_processes = min(num_processes, usable_cores())
        self._idle: list[_Pool] = []
        self._num_busy = 0

    def batches(self, samples: LazySamples, rows: Sequence[np.ndarray], seed: int | None) -> Iterator[list[Any]]:
        """One pass: each batch as its parts, nests of tensors in the processor's memory.

        Args:
            samples: One of the splits.
            rows: Indices into its dataset for each batch, int64.
            seed: Of the pass; None: no augmentation.

        Raises:
            RunError: A sample cannot be read, or a process died.
        """
        split = next(place for place, one in enumerate(self._splits) if one is samples)
        if not self.num_processes:
            yield from self._read_here(split, rows, seed)
            return

        num = self.num_processes

        def parts(number: int) -> Iterator[_Part]:
            return (_Part(number, split, seed, part) for batch in rows for part in divide(batch, num))

        with self._a_pool() as pool:
            found = pool.read(parts)
            for batch in rows:
                yield [next(found) for _ in divide(batch, num)]

    def _read_here(self, split: int, rows: Sequence[np.ndarray], seed: int | None) -> Iterator[list[Any]]:
        reader = _Reader(self._splits, torch.zeros(1, dtype=torch.int64))
        for batch in rows:
            found = reader.__getitems__(_Part(0, split, seed, batch))
            yield [tree_map(lambda tensor: tensor.pin_memory(), found) if self._pinned else found]

    @contextlib.contextmanager
    def _a_pool(self) -> Iterator[_Pool]:
        """Processes that nobody uses; where a pass failed they are replaced, for their state is unknown."""
        pool = self._idle.pop() if self._idle else None
        if pool is not None and not pool.alive():
            pool.close()
            pool = None
        pool = pool or _Pool(self._splits, max(1, self.num_processes // (1 + self._num_busy)), self._pinned)
        self._num_busy += 1
        try:
            yield pool
        except GeneratorExit:
            pool.let_go()
            self._idle.append(pool)
            raise
        except BaseException as error:
            pool.close()
            if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
                raise RunError(f"a process that reads samples died: {error}. If it was killed for memory, lower "
                               "data.loader_workers, or give the machine more shared memory (/dev/shm).") from error
            raise
        finally:
            self._num_busy -= 1
        self._idle.append(pool)

    def close(self) -> None:
        """End the processes that no pass has; a later pass starts new ones."""
        while self._idle:
            self._idle.pop().close()


_LOADERS: weakref.WeakKeyDictionary[Data, dict[tuple[int, bool], Loader]] = weakref.WeakKeyDictionary()


def loader_of(data: Data, num_processes: int, pinned: bool) -> Loader:
    """The loader of all splits of a dataset in this process; it goes when the dataset does."""
    known = _LOADERS.setdefault(data, {})
    if (num_processes, pinned) not in known:
        splits = [split for split in (data.train, data.validation, data.test) if isinstance(split, LazySamples)]
        known[num_processes, pinned] = Loader(splits, num_processes, pinned)
    return known[num_processes, pinned]


def divide(rows: np.ndarray, num_processes: int) -> list[np.ndarray]:
    """The rows of a batch in consecutive parts of nearly equal size, for several processes to read."""
    size = min(MAX_PART, max(MIN_PART, math.ceil(len(rows) / num_processes)))
    return np.array_split(rows, math.ceil(len(rows) / size))


class DeviceCopies:
    """Takes batches to a device; on CUDA on a stream of its own, so that one is copied while another is computed with.

    Args:
        device: Where batches are wanted.
        ahead: Batches that are on their way when one is given out; default: 1 on CUDA, 0 on the CPU.
    """

    def __init__(self, device: torch.device, ahead: int | None = None) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead = ahead if ahead is not None else int(self._stream is not None)

    def __call__(self, batches: Iterable[list[Any]]) -> Iterator[Any]:
        """Batches from their parts, on the device."""
        sent: deque[tuple[Any, Any]] = deque()
        for parts in batches:
            sent.append(self._send(parts))
            if len(sent) > self._ahead:
                yield self._receive(*sent.popleft())
        while sent:
            yield self._receive(*sent.popleft())

    def _send(self, parts: list[Any]) -> tuple[Any, Any]:
        """Start copying a batch; when the event has happened it is there."""
        if self._stream is None:
            return joined(parts), None
        with torch.cuda.stream(self._stream):
            copies = [tree_map(lambda tensor: tensor.to(self._device, non_blocking=True), part) for part in parts]
            return joined(copies), self._stream.record_event()

    def _receive(self, batch: Any, arrived: Any) -> Any:
        """Let the computations wait for a batch (not this process), and its memory for the computations."""
        if arrived is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(arrived)
            for leaf in leaves(batch):
                leaf.record_stream(computing)
        return batch


def joined(parts: list[Any]) -> Any:
    """Nests of tensors of one form, put together along the first dimension."""
    if len(parts) == 1:
        return parts[0]
    found = [dict(named_leaves(part)) for part in parts]
    whole = iter([torch.cat([one[name] for one in found]) for name in found[0]])
    return tree_map(lambda _: next(whole), parts[0])


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collate(samples: list[Any]) -> Any:
    """Stack the leaves of samples into a batch; pairs stay tuples, numbers become int64 or float32 tensors."""
    return tree_map(_narrow, _tuples(default_collate(samples)))


def _narrow(tensor: Any) -> Any:
    return tensor.float() if isinstance(tensor, Tensor) and tensor.dtype == torch.float64 else tensor


def _tuples(nest: Any) -> Any:
    """torch's collate turns plain tuples into lists."""
    if isinstance(nest, list):
        return tuple(_tuples(value) for value in nest)
    return {key: _tuples(value) for key, value in nest.items()} if isinstance(nest, dict) else nest
