"""The arithmetic of a run: device kind, precision, layout, threads; with the recipe it decides a result's bits."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import UserError
from swamp_ray.process_state import plain_state, threads_of

SINGLE = "single:1"
WIDTHS = (2, 4, 8, 16)
"""Widths of packs that are timed."""
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def form_and_width(packing: str) -> tuple[str, int]:
    """How particles of a worker are trained, and how many at a time: ``("stacked", 4)`` of ``"stacked:4"``."""
    form, _, width = packing.partition(":")
    return form, int(width)


@dataclass(frozen=True)
class Arithmetic:
    """Fixed when a run starts, and part of every result's name.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        torch: Major and minor version of torch.
        precision: ``"fp32"`` or ``"bf16"`` (autocast; weights stay float32).
        channels_last: Memory layout of images and convolution weights.
        threads: torch threads of a particle.
        compile: Whether the network is compiled.
        deterministic: Whether only deterministic algorithms are used (always so on the CPU).
        fused: Whether the optimiser is torch's fused one.
        packing: In which form a worker trains several particles at a time, and how many: ``"single:1"``,
            ``"stacked:4"``, ``"graphs:4"``.
        ranks: Data-parallel ranks of a particle.
    """

    device: str
    torch: str
    precision: str
    channels_last: bool
    threads: int
    compile: bool
    deterministic: bool
    fused: bool
    packing: str = SINGLE
    ranks: int = 1

    def as_dict(self) -> dict[str, str | int | bool]:
        """The fields as plain values, for names and records."""
        return asdict(self)

    @property
    def form(self) -> str:
        """``"single"``, ``"stacked"`` or ``"graphs"``, see :mod:`swamp_ray.training.packs.pack`."""
        return form_and_width(self.packing)[0]

    @property
    def width(self) -> int:
        """How many particles a worker trains at a time."""
        return form_and_width(self.packing)[1]

    @property
    def alone(self) -> Arithmetic:
        """The arithmetic of what is never packed: the dense phase, and evaluations."""
        return self.packed(SINGLE)

    def packed(self, packing: str) -> Arithmetic:
        """The same in another form of packing."""
        return replace(self, packing=packing)


def resolve_arithmetic(execution: ExecutionConfig, device: str, model: nn.Module, ranks: int = 1) -> Arithmetic:
    """Replace every ``auto`` by what this kind of device and network get.

    Args:
        execution: What was asked for.
        device: ``"cpu"`` or ``"cuda"``, where particles will train.
        model: The network; channels_last is for networks with 2-D convolutions.
        ranks: Data-parallel ranks of a particle.
    """
    has_conv = any(isinstance(module, nn.Conv2d) for module in model.modules())
    precision = execution.precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    return Arithmetic(
        device=device,
        torch=".".join(torch.__version__.split(".")[:2]),
        precision=precision,
        channels_last=has_conv if execution.channels_last == "auto" else execution.channels_last,
        threads=execution.threads,
        compile=execution.compile,
        deterministic=execution.deterministic or device == "cpu",
        fused=True if execution.fused == "auto" else execution.fused,
        ranks=ranks,
    )


def packings(execution: ExecutionConfig, device: str, num_jobs: int) -> list[str]:
    """The forms and widths of packing that a config leaves open; a single one is decided.

    Args:
        execution: What was asked for.
        device: ``"cpu"`` or ``"cuda"``.
        num_jobs: The most particles that are there to be trained at a time.

    Raises:
        UserError: CUDA graphs are asked for on the CPU.
    """
    if execution.packing == "graphs" and device != "cuda":
        raise UserError("CUDA graphs need a CUDA device, and particles train on the CPU", where="execution.packing",
                        do="Set execution.packing: stacked or auto.")
    forms = [execution.packing]
    if execution.packing == "auto":
        forms = ["stacked", "graphs"] if device == "cuda" else ["stacked"]
    asked = execution.particles_per_worker
    if asked == "auto":
        return _widths_to_time(forms, device, num_jobs)
    if asked == 1 and execution.packing == "auto":
        return [SINGLE]
    # A pack of one is a particle alone, unless it is a CUDA graph.
    found = [f"{form}:{asked}" for form in forms if form != "stacked" or asked > 1]
    return found or [SINGLE]


def _widths_to_time(forms: Sequence[str], device: str, num_jobs: int) -> list[str]:
    if num_jobs == 1 and device == "cpu":
        return [SINGLE]
    widths = sorted({width for width in (*WIDTHS, num_jobs) if 1 < width <= min(num_jobs, WIDTHS[-1])})
    found = [SINGLE]
    for form in forms:
        if form == "graphs":
            found.append("graphs:1")
        found += [f"{form}:{width}" for width in widths]
    return found


def local_device(kind: str) -> torch.device:
    """The device of this process for a kind; on CUDA the current one, which is the first visible one by default.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is visible to this process", where="execution.device",
                        do="Use execution.device: cpu, or a machine with a GPU and a CUDA build of torch.")
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device("cpu")


@contextlib.contextmanager
def applied(arithmetic: Arithmetic) -> Iterator[None]:
    """Run a block under an arithmetic's threads and determinism, and restore the process's own afterwards.

    Other settings of the process, by its caller or by a module of the user's, have no effect in the block. The
    global random state is restored as well, because training seeds it for dropout.
    """
    on_cuda = arithmetic.device == "cuda"
    with plain_state(), torch.random.fork_rng(devices=[local_device("cuda")] if on_cuda else []):
        determinism = _cuda_determinism(arithmetic.deterministic) if on_cuda else contextlib.nullcontext()
        with threads_of(arithmetic.threads), determinism:
            yield


@contextlib.contextmanager
def _cuda_determinism(deterministic: bool) -> Iterator[None]:
    """Set determinism for a block inside of :func:`plain_state`, which restores all settings but the variable."""
    workspace = os.environ.get(_WORKSPACE)
    if deterministic and workspace is None:
        # Without it torch refuses cuBLAS under deterministic algorithms.
        os.environ[_WORKSPACE] = ":4096:8"
    try:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic
        yield
    finally:
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)


def machine_facts() -> dict[str, str]:
    """Processor, GPU and library versions: recorded, and part of a result's name only under ``identity.strict``."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
        facts["cudnn"] = str(torch.backends.cudnn.version())
    return facts
