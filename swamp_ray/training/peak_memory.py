"""The peak memory of a job on its device, measured while it runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_SLACK_BYTES = 16 << 20
"""The kernel counts a process's memory in steps, and the peak is read a moment after the present size."""


class PeakMemory:
    """Measures the peak since this object was created; a later object in the same process begins anew for all.

    On CUDA it is that of torch's tensors, all of them that this process has on the device; on the CPU that of the whole
    process, libraries included.

    Args:
        device: Of the job.
        process: The folder in which Linux describes this process.
    """

    def __init__(self, device: torch.device, process: Path = Path("/proc/self")) -> None:
        self._device = device
        self._process = process
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._watches = True
        else:
            self._watches = self._reset()

    def read_bytes(self) -> int | None:
        """The peak so far; None where the system does not measure it."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return self._resident().get("VmHWM") if self._watches else None

    def _reset(self) -> bool:
        """Reset the process's peak; False where the system refuses or ignores that."""
        try:
            (self._process / "clear_refs").write_text("5")
        except OSError:
            return False
        found = self._resident()
        peak = found.get("VmHWM")
        return peak is not None and peak <= found.get("VmRSS", 0) + _SLACK_BYTES

    def _resident(self) -> dict[str, int]:
        """VmHWM and VmRSS, the peak and the present resident set, in bytes."""
        try:
            text = (self._process / "status").read_text()
        except OSError:
            return {}
        found = {}
        for name, kib in re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB$", text, re.M):
            found[name] = 1024 * int(kib)
        return found
