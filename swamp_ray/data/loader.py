"""Reads samples one by one, in processes that stay between passes, and copies batches to the device ahead of use."""

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
from swamp_ray.data.trees import leaves, named_leaves, tree_map, with_leaves
from swamp_ray.errors import RunError, SwampError, UserError
from swamp_ray.random_state import seeded
from swamp_ray.seeding import derive_seed
from swamp_ray.user_code.importing import own_traceback

MIN_PART = 16
MAX_PART = 64
"""Samples that a process reads at a time: enough to make its messages cheap, few enough to divide a batch."""
PREFETCH = 4
"""Parts that a process reads ahead."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a batch, to be read by one process.

    Attributes:
        number: Counts the passes of the same processes.
        split: Position of the samples among the splits that the processes have.
        seed: The pass's seed; None: no augmentation.
        rows: Indices into the dataset, int64 ``[n]``.
    """

    number: int
    split: int
    seed: int | None
    rows: np.ndarray


@dataclass(frozen=True)
class _Refusal:
    """An error whose text is for the user, sent between processes without a traceback."""

    error: SwampError


class _Reader(Dataset[Any]):
    """Reads parts of batches, each sample under random generators seeded by the pass and the sample.

    Args:
        splits: The samples that can be read.
        current: Number of the present pass, int64 ``[1]``, in memory that the processes share.
    """

    def __init__(self, splits: Sequence[LazySamples], current: Tensor) -> None:
        self._splits = splits
        self._current = current

    def __getitems__(self, part: _Part) -> Any:
        """The collated samples of a part; None where its pass is over, so that nobody needs them."""
        samples = self._splits[part.split]
        found = []
        for row in part.rows.tolist():
            if int(self._current) != part.number:
                return None
            found.append(read_sample(samples, row, part.seed))
        return batch_of(samples, found, part.rows)


class _RemoteReader(_Reader):
    """The reader of another process, which returns errors for the user instead of raising them."""

    def __getitems__(self, part: _Part) -> Any:
        try:
            return super().__getitems__(part)
        except SwampError as error:
            return _Refusal(error)


def read_sample(samples: LazySamples, row: int, seed: int | None) -> Any:
    """One sample, transformed; its random numbers depend on the pass's seed and its row, in whichever process."""
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
    """The parts of the next pass, as the sampler of a DataLoader that is iterated anew for each pass."""

    def __init__(self) -> None:
        self.parts: Callable[[], Iterator[_Part]] = _nothing

    def __iter__(self) -> Iterator[_Part]:
        return self.parts()


class _ProcessGroup:
    """Processes that read for one pass at a time, and stay for the next."""

    def __init__(self, splits: Sequence[LazySamples], num_processes: int, pinned: bool) -> None:
        self._current = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._plan = _Plan()
        self._processes: Any = None
        self._loader: DataLoader[Any] = DataLoader(
            _RemoteReader(splits, self._current),
            batch_sampler=self._plan,  # type: ignore[arg-type]
            num_workers=num_processes,
            prefetch_factor=PREFETCH,
            persistent_workers=True,
            collate_fn=_unchanged,
            pin_memory=pinned,
            worker_init_fn=_detach,
            generator=torch.Generator().manual_seed(0),  # without one it would draw from the global generator
        )

    def read(self, parts: Callable[[int], Iterator[_Part]]) -> Iterator[Any]:
        """The collated samples of each part, in order, given the number of the pass."""
        self.end_pass()
        number = int(self._current)
        self._plan.parts = lambda: parts(number)
        self._processes = iter(self._loader)
        for found in self._processes:
            if isinstance(found, _Refusal):
                raise found.error
            yield found

    def end_pass(self) -> None:
        """End the present pass; processes skip its parts that they have not read yet."""
        self._current += 1
        self._plan.parts = _nothing

    def alive(self) -> bool:
        """Whether no process has died."""
        return self._processes is None or all(process.is_alive() for process in self._processes._workers)

    def close(self) -> None:
        """End the processes."""
        self.end_pass()
        if self._processes is not None:
            self._processes._shutdown_workers()  # DataLoader has no public way but to lose the last reference


def _unchanged(found: Any) -> Any:
    return found


def _detach(_process: int) -> None:
    """Make a new process independent of the one that it was forked from."""
    # Ctrl-C reaches the whole process group, and the parent may want to finish a step first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Inherited objects, other process groups above all, must not be finalised here; and their memory stays shared.
    gc.freeze()


class Loader:
    """Reads the splits of a dataset in processes of its own, which live as long as the loader.

    A pass uses all processes. One that begins during others, as those of packed particles do, starts fewer of its own.

    Args:
        splits: All that will be read; processes get them once, when they start.
        num_processes: At most so many, and at most one a core; 0: samples are read in this process.
        pinned: Give tensors in pinned memory.
    """

    def __init__(self, splits: Sequence[LazySamples], num_processes: int, pinned: bool = False) -> None:
        self._splits = tuple(splits)
        self._pinned = pinned
        self.num_processes = min(num_processes, usable_cores())
        self._idle: list[_ProcessGroup] = []
        self._num_busy = 0

    def batches(self, samples: LazySamples, rows: Sequence[np.ndarray], seed: int | None) -> Iterator[list[Any]]:
        """One pass: each batch as its parts, trees of tensors in the processor's memory.

        Args:
            samples: One of the splits.
            rows: Indices into its dataset for each batch, int64.
            seed: Of the pass; None: no augmentation.

        Raises:
            RunError: A sample cannot be read, or a process died.
        """
        split = [known is samples for known in self._splits].index(True)
        if not self.num_processes:
            yield from self._read_here(split, rows, seed)
            return

        num = self.num_processes  # the closure must not refer to the loader, whose processes end with it

        def parts(number: int) -> Iterator[_Part]:
            for batch in rows:
                for part in divide(batch, num):
                    yield _Part(number, split, seed, part)

        with self._process_group() as group:
            found = group.read(parts)
            for batch in rows:
                yield [next(found) for _ in divide(batch, num)]

    def _read_here(self, split: int, rows: Sequence[np.ndarray], seed: int | None) -> Iterator[list[Any]]:
        reader = _Reader(self._splits, torch.zeros(1, dtype=torch.int64))
        for batch in rows:
            found = reader.__getitems__(_Part(0, split, seed, batch))
            yield [tree_map(lambda tensor: tensor.pin_memory(), found) if self._pinned else found]

    @contextlib.contextmanager
    def _process_group(self) -> Iterator[_ProcessGroup]:
        """Processes for one pass. Those of a pass that failed are replaced, because their state is unknown."""
        group = self._idle.pop() if self._idle else None
        if group is not None and not group.alive():
            group.close()
            group = None
        if group is None:
            num_processes = max(1, self.num_processes // (1 + self._num_busy))
            group = _ProcessGroup(self._splits, num_processes, self._pinned)
        self._num_busy += 1
        try:
            yield group
        except GeneratorExit:
            group.end_pass()
            self._idle.append(group)
            raise
        except BaseException as error:
            group.close()
            if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
                raise RunError(f"a process that reads samples died: {error}. If it was killed for memory, lower "
                               "data.loader_workers, or give the machine more shared memory (/dev/shm).") from error
            raise
        finally:
            self._num_busy -= 1
        self._idle.append(group)

    def close(self) -> None:
        """End the processes that no pass uses; a later pass starts new ones."""
        while self._idle:
            self._idle.pop().close()


_LOADERS: weakref.WeakKeyDictionary[Data, dict[tuple[int, bool], Loader]] = weakref.WeakKeyDictionary()


def loader_of(data: Data, num_processes: int, pinned: bool) -> Loader:
    """The loader of all splits of a dataset in this process; it lives as long as the dataset."""
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
    """Copies batches to a device; on CUDA on a stream of its own, so that copies run beside computations.

    Args:
        device: Where batches are wanted.
        ahead: Batches whose copies have started when one is returned; default: 1 on CUDA, 0 on the CPU.
    """

    def __init__(self, device: torch.device, ahead: int | None = None) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead = ahead if ahead is not None else int(self._stream is not None)

    def __call__(self, batches: Iterable[list[Any]]) -> Iterator[Any]:
        """Batches on the device, each from its parts."""
        started: deque[tuple[Any, Any]] = deque()
        for parts in batches:
            started.append(self._start(parts))
            if len(started) > self._ahead:
                yield self._receive(*started.popleft())
        while started:
            yield self._receive(*started.popleft())

    def _start(self, parts: list[Any]) -> tuple[Any, Any]:
        """Start copying a batch; the batch, and the event of its arrival."""
        if self._stream is None:
            return joined(parts), None
        with torch.cuda.stream(self._stream):
            copies = [tree_map(lambda tensor: tensor.to(self._device, non_blocking=True), part) for part in parts]
            return joined(copies), self._stream.record_event()

    def _receive(self, batch: Any, arrived: Any) -> Any:
        """Make the computing stream wait for a batch, without blocking this process.

        The batch's memory is not reused before the computations with it are done.
        """
        if arrived is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(arrived)
            for leaf in leaves(batch):
                leaf.record_stream(computing)
        return batch


def joined(parts: list[Any]) -> Any:
    """Trees of tensors of one form, put together along the first dimension."""
    if len(parts) == 1:
        return parts[0]
    # By name: samples of one part may have their keys in another order than those of the next.
    by_name = [dict(named_leaves(part)) for part in parts]
    whole = []
    for name in by_name[0]:
        whole.append(torch.cat([found[name] for found in by_name]))
    return with_leaves(parts[0], whole)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collate(samples: list[Any]) -> Any:
    """Stack the leaves of samples into a batch; pairs stay tuples, numbers become int64 or float32 tensors."""
    return tree_map(_narrow, _tuples(default_collate(samples)))


def _narrow(tensor: Any) -> Any:
    return tensor.float() if isinstance(tensor, Tensor) and tensor.dtype == torch.float64 else tensor


def _tuples(tree: Any) -> Any:
    """A tree with tuples for lists, because torch's collate turns plain tuples into lists."""
    if isinstance(tree, list):
        return tuple(_tuples(value) for value in tree)
    return {key: _tuples(value) for key, value in tree.items()} if isinstance(tree, dict) else tree
