"""The harness's clock."""

from __future__ import annotations

import time

import torch


def now(device: torch.device | None = None) -> float:
    """Seconds; with a device, after what it was given to do is done."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
