"""The most memory that a call holds above what was held before it."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """On a GPU by torch's allocator, exact; else on Linux by the kernel's high-water mark, to a few MiB; else None."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _reset_high_water_mark()
    if before is None:
        return None
    call()
    return max(0, _resident("VmHWM") - before)


def _reset_high_water_mark() -> int | None:
    """Resident bytes now, the high-water mark being set back to them; None where the system keeps no such mark."""
    try:
        if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
            # what the C library keeps for reuse would hide what the call takes
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmHWM")
    except OSError:
        return None


def _resident(field: str) -> int:
    """A line of the process's status, in bytes: VmHWM is the most that was resident."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE).group(1))
