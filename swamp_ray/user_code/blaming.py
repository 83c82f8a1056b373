"""Errors that the user's model, task or data cause, told apart from those of the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from swamp_ray.errors import SwampError, UserError
from swamp_ray.user_code.importing import own_traceback

_CPU_MEMORY = ("can't allocate memory", "not enough memory")
_CONNECTION = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
_METHODS = ("loss", "training_step", "predict", "metrics")
_DEVICE = ("CUDA error", "cuDNN error", "CUBLAS_STATUS")


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the machine's memory was used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_MEMORY)


def lost_connection(error: BaseException) -> bool:
    """Whether another rank cannot be reached any more."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(text in str(error) for text in _CONNECTION)


@contextlib.contextmanager
def blamed(what: str, where: str = "") -> Iterator[None]:
    """A block in which the user's code runs: its errors are raised as a UserError with their first line and own frames.

    What the machine causes (memory, connections, a device that fails) passes as it is.

    Args:
        what: That the code failed, e.g. ``"the task my:Task failed in evaluation"``.
        where: Option path or job.

    Raises:
        UserError: The code raised something else.
    """
    try:
        yield
    except SwampError:
        raise
    except Exception as error:
        failed_device = isinstance(error, RuntimeError) and any(text in str(error) for text in _DEVICE)
        if out_of_memory(error) or lost_connection(error) or failed_device:
            raise
        raise UserError(what, where=where, do=f"Its own error:\n{own_traceback(error)}") from error


def failed_method(error: BaseException, model: nn.Module, task: Any) -> str:
    """The method of a task that failed, e.g. ``"loss"``; empty where the network was at work, or neither."""
    modules = {id(module) for module in model.modules()}
    found = ""
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        first = step.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if id(first) in modules:
            return ""
        if first is task and code.co_name in _METHODS:
            found = code.co_name
        step = step.tb_next
    return found
