"""The clock of whoever times answers: seconds once a device is done, and when each token was there."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from transformers import StoppingCriteria


def now(device: torch.device | None = None) -> float:
    """Seconds; with a device, after what it was given to do is done."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class Ticks(StoppingCriteria):
    """Stops nothing: ``seconds`` holds when ``generate`` began and when each token was there."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, [now(device)]

    def __call__(self, input_ids: Tensor, scores: Tensor, **more) -> Tensor:
        self.seconds.append(now(self.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
