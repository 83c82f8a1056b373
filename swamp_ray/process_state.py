"""Resets the settings of torch, NumPy and Python while this package computes, and restores the caller's afterwards.

A run's numbers depend on no setting of its caller, such as a default element type, autocast or TF32. Some settings
belong to the thread (modes, autocast, gradients), most of them to the process, so that two threads compute one after
the other.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as module_hooks
from torch.overrides import _pop_mode, _push_mode
from torch.utils import _device as default_device
from torch.utils import _python_dispatch as dispatch_modes

_SMALLEST_NORMAL = sys.float_info.min
_COMPUTING = threading.RLock()
_DEVICES = ("cpu", "cuda", "mps", "xpu")
_GLOBAL_HOOKS = ("_global_backward_pre_hooks", "_global_backward_hooks", "_global_forward_pre_hooks",
                 "_global_forward_hooks", "_global_forward_hooks_always_called", "_global_forward_hooks_with_kwargs",
                 "_global_buffer_registration_hooks", "_global_module_registration_hooks",
                 "_global_parameter_registration_hooks")


optimizers: Any = importlib.import_module("torch.optim.optimizer")  # torch.optim has a name of its own for it


@dataclass(frozen=True)
class _Setting:
    """One setting: how to read and write it, and its value in a new process."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    plain: Any

    @contextlib.contextmanager
    def reset(self) -> Iterator[None]:
        before = self.read()
        if before != self.plain:
            self.write(self.plain)
        try:
            yield
        finally:
            if self.read() != before:
                self.write(before)


def _attribute(owner: Any, name: str, plain: Any) -> _Setting:
    return _Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), plain)


def _fp32_precisions() -> list[_Setting]:
    read: Any = torch._C._get_fp32_precision_getter
    write: Any = torch._C._set_fp32_precision_setter
    plain = {("generic", "all"): "none", ("cuda", "matmul"): "none", ("cuda", "conv"): "tf32", ("cuda", "rnn"): "tf32",
             ("mkldnn", "matmul"): "none", ("mkldnn", "conv"): "none", ("mkldnn", "rnn"): "none"}
    return [_Setting(partial(read, *place), partial(write, *place), value) for place, value in plain.items()]


def _matmul_precision() -> str | None:
    """The older of torch's two settings; None where the newer one is in use, because the older cannot be read then."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_matmul_precision(value: str | None) -> None:
    if value is not None and _matmul_precision() is not None:
        torch.set_float32_matmul_precision(value)


def flushes_denormals() -> bool:
    """Whether this thread's processor rounds numbers below the smallest normal one to 0."""
    return _SMALLEST_NORMAL / 2 == 0.0


def _process_settings() -> list[_Setting]:
    cuda = torch.backends.cuda
    cudnn = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    future = torch.__future__
    mha = torch.backends.mha
    found = [
        _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        _Setting(lambda: (torch.are_deterministic_algorithms_enabled(),
                          torch.is_deterministic_algorithms_warn_only_enabled()),
                 # The public function imports torch's compiler, which takes seconds.
                 lambda value: torch._C._set_deterministic_algorithms(value[0], warn_only=value[1]), (False, False)),
        _attribute(torch.utils.deterministic, "fill_uninitialized_memory", True),
        _Setting(lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
                 lambda value: torch.autograd.set_detect_anomaly(*value), (False, True)),
        _Setting(future.get_overwrite_module_params_on_conversion,
                 future.set_overwrite_module_params_on_conversion, False),
        _Setting(future.get_swap_module_params_on_conversion, future.set_swap_module_params_on_conversion, False),
        # The older setting writes the newer ones, and cannot be read while they contradict it.
        *_fp32_precisions(), _Setting(_matmul_precision, _set_matmul_precision, "highest"), *_fp32_precisions(),
        _attribute(matmul, "allow_fp16_reduced_precision_reduction", True),
        _attribute(matmul, "allow_bf16_reduced_precision_reduction", True),
        _attribute(cudnn, "enabled", True),
        _attribute(cudnn, "benchmark", False),
        _attribute(cudnn, "deterministic", False),
        _attribute(torch.backends.mkldnn, "enabled", True),
        _attribute(torch.backends.mkldnn, "deterministic", False),
        _Setting(mha.get_fastpath_enabled, mha.set_fastpath_enabled, True),
        _Setting(cuda.flash_sdp_enabled, cuda.enable_flash_sdp, True),
        _Setting(cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, True),
        _Setting(cuda.math_sdp_enabled, cuda.enable_math_sdp, True),
        _Setting(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, True),
    ]
    if torch.cuda.is_available():
        found.append(_attribute(matmul, "allow_fp16_accumulation", False))
    if torch.backends.opt_einsum.is_available():
        found += [_attribute(torch.backends.opt_einsum, "enabled", True),
                  _attribute(torch.backends.opt_einsum, "strategy", "auto")]
    return found


def _thread_settings() -> list[_Setting]:
    autocast: list[_Setting] = []
    for device in _DEVICES:
        autocast.append(_Setting(partial(torch.is_autocast_enabled, device),
                                 partial(torch.set_autocast_enabled, device), False))
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float16)):
        autocast.append(_Setting(partial(torch.get_autocast_dtype, device),
                                 partial(torch.set_autocast_dtype, device), dtype))
    usual = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
    return [
        *autocast,
        _Setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, True),
        _Setting(torch.is_grad_enabled, torch._C._set_grad_enabled, True),
        _Setting(torch.autograd.is_multithreading_enabled, torch._C._set_multithreading_enabled, True),
        _Setting(np.geterr, lambda value: np.seterr(**value), usual),
        _Setting(flushes_denormals, torch.set_flush_denormal, False),
    ]


@contextlib.contextmanager
def plain_thread() -> Iterator[None]:
    """A block in which modes, hooks, autocast and the like of this thread's caller are off."""
    with ExitStack() as stack:
        stack.enter_context(_no_function_modes())
        stack.enter_context(_no_dispatch_modes())
        stack.enter_context(_no_saved_tensor_hooks())
        stack.enter_context(torch.inference_mode(False))
        for setting in _thread_settings():
            stack.enter_context(setting.reset())
        yield


@contextlib.contextmanager
def plain_state() -> Iterator[None]:
    """A block in which all settings of thread and process are those of a new process; all are restored afterwards.

    Another thread must not compute meanwhile, see :func:`computing`.
    """
    with ExitStack() as stack:
        stack.enter_context(plain_thread())
        for setting in _process_settings():
            stack.enter_context(setting.reset())
        for name in _GLOBAL_HOOKS:
            stack.enter_context(_emptied(getattr(module_hooks, name)))
        for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
            stack.enter_context(_emptied(getattr(optimizers, name)))
        stack.enter_context(_random_state_kept())
        yield


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    """A block in which torch uses so many threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def computing(wait: Callable[[], None] | None = None) -> Iterator[None]:
    """A block in which this thread alone computes, in a plain state; other threads block until it ends.

    Random generators, thread numbers and the choice of algorithms belong to the whole process: two runs that compute
    at the same time would get each other's.

    Args:
        wait: Called once, before this thread waits for another one.
    """
    if not _COMPUTING.acquire(blocking=False):
        if wait is not None:
            wait()
        _COMPUTING.acquire()
    try:
        with plain_state(), _warnings_are_no_errors():
            yield
    finally:
        _COMPUTING.release()


@contextlib.contextmanager
def _warnings_are_no_errors() -> Iterator[None]:
    """A block in which filters of the caller's that turn warnings into errors only show them."""
    with warnings.catch_warnings():
        warnings.filters[:] = [("default", *rest) if action == "error" else (action, *rest)  # type: ignore[index]
                               for action, *rest in warnings.filters]
        yield


@contextlib.contextmanager
def _no_function_modes() -> Iterator[None]:
    """A block without function modes, among them the default device, which torch keeps in three places."""
    modes = _popped_modes()
    current = default_device.CURRENT_DEVICE
    default_device.CURRENT_DEVICE = None
    context = torch._GLOBAL_DEVICE_CONTEXT
    had_default = hasattr(context, "device_context")
    default = getattr(context, "device_context", None)
    context.device_context = None
    try:
        yield
    finally:
        _popped_modes()
        for mode in reversed(modes):
            _push_mode(mode)
        default_device.CURRENT_DEVICE = current
        if had_default:
            context.device_context = default
        else:
            del context.device_context


@contextlib.contextmanager
def _no_dispatch_modes() -> Iterator[None]:
    num: Any = torch._C._len_torch_dispatch_stack
    pop: Any = dispatch_modes._pop_mode
    push: Any = dispatch_modes._push_mode
    modes = [pop() for _ in range(num())]
    try:
        yield
    finally:
        while num():
            pop()
        for mode in reversed(modes):
            push(mode)


def _popped_modes() -> list[Any]:
    return [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]


@contextlib.contextmanager
def _no_saved_tensor_hooks() -> Iterator[None]:
    library: Any = torch._C
    stack = library._autograd
    found: list[Any] = []
    hooks = stack._top_saved_tensors_default_hooks(True)
    while hooks is not None:
        found.append(hooks)
        stack._pop_saved_tensors_default_hooks()
        hooks = stack._top_saved_tensors_default_hooks(True)
    try:
        yield
    finally:
        while stack._top_saved_tensors_default_hooks(True) is not None:
            stack._pop_saved_tensors_default_hooks()
        for pack, unpack in reversed(found):
            stack._push_saved_tensors_default_hooks(pack, unpack)


@contextlib.contextmanager
def _emptied(hooks: Any) -> Iterator[None]:
    before = dict(hooks)
    hooks.clear()
    try:
        yield
    finally:
        hooks.clear()
        hooks.update(before)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """A block after which the global generators are as before; NumPy's may be of another kind and is replaced."""
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = torch.cuda.get_rng_state_all() if on_cuda else []
    torch_state = torch.get_rng_state()
    python_state = random.getstate()
    numpy_random: Any = np.random
    bits = numpy_random.get_bit_generator()
    numpy_state = bits.state
    numpy_random.set_bit_generator(np.random.MT19937(0))
    try:
        yield
    finally:
        numpy_random.set_bit_generator(bits)
        bits.state = numpy_state
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if devices:
            torch.cuda.set_rng_state_all(devices)
