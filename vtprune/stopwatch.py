"""Milliseconds between two moments, without waiting for a GPU that is still busy."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


@dataclass
class Stopwatch:
    """``lap = Stopwatch.start(device)``, then ``lap.stop(device)``; ``milliseconds`` may wait for the device."""

    began: float | torch.cuda.Event
    ended: float | torch.cuda.Event | None = None

    @staticmethod
    def now(device: torch.device) -> float | torch.cuda.Event:
        """A moment: on a GPU the point in its queue, elsewhere the clock."""
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    @classmethod
    def start(cls, device: torch.device) -> Stopwatch:
        """Starts now."""
        return cls(cls.now(device))

    def stop(self, device: torch.device) -> Stopwatch:
        """Stops now."""
        self.ended = self.now(device)
        return self

    @property
    def milliseconds(self) -> float:
        """Time from start to stop."""
        if isinstance(self.began, float):
            return 1000 * (self.ended - self.began)
        self.ended.synchronize()
        return self.began.elapsed_time(self.ended)
