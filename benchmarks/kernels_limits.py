"""What this device can do at best: bytes it copies and FLOPs it multiplies in a second, both measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.engine_time import spread
from benchmarks.kernels_time import timed

COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
"""Far beyond every cache."""
SIDE = {"cpu": 768, "cuda": 8192}
"""Of the square matrices that are multiplied."""
TINY = {"bytes": 1 << 20, "side": 64}


@dataclass(frozen=True)
class Limits:
    """Bytes in a second, each read byte and each written one counted, and FLOPs in a second."""

    bandwidth: float
    rate: float

    def seconds(self, moved: int, flops: int) -> tuple[float, str]:
        """The least time for so much work, and what takes it: "bytes" or "FLOPs"."""
        by = {"bytes": moved / self.bandwidth, "FLOPs": flops / self.rate}
        name = max(by, key=by.get)
        return by[name], name


def measured(device: str, dtype: torch.dtype, rounds: int, clock: Mapping, tiny: bool) -> tuple[list[dict], Limits]:
    """Two rows, and their medians: a large copy, and a square matrix product in ``dtype``."""
    count = (TINY["bytes"] if tiny else COPY_BYTES[device]) // dtype.itemsize
    side = TINY["side"] if tiny else SIDE[device]
    source = torch.ones(count, dtype=dtype, device=device)
    target, square = torch.empty_like(source), torch.ones(side, side, dtype=dtype, device=device)
    bytes_row = _row("copy", lambda: target.copy_(source), 2 * source.nbytes, "bytes_per_second", rounds, device, clock)
    flops_row = _row("product", lambda: square @ square, 2 * side**3, "flops_per_second", rounds, device, clock)
    name = str(dtype).removeprefix("torch.")
    rows = [
        {"what": "limit", "dtype": name, "of": "copy", "bytes": source.nbytes, **bytes_row},
        {"what": "limit", "dtype": name, "of": "product", "side": side, **flops_row},
    ]
    return rows, Limits(bytes_row["bytes_per_second"], flops_row["flops_per_second"])


def _row(name: str, call: Callable[[], object], work: int, unit: str, rounds: int, device: str, clock: Mapping) -> dict:
    call()
    seconds = timed({name: call}, max(3, rounds), device, clock)[name]
    return {**spread(unit, [work / second for second in seconds]), "runs": len(seconds)}
