"""The one stopwatch: seconds, peak memory, and the conditions without which neither means anything."""

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from vtprune.bench import memory
from vtprune.bench.versions import commit, versions

ROOT = Path(__file__).parents[1]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(fn: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one call, from an idle device to an idle device."""
    _synchronize()
    start = clock()
    fn()
    _synchronize()
    return clock() - start


def _spread(name: str, values: list[float]) -> dict[str, float]:
    """Median and extremes as ``name``, ``name_min`` and ``name_max``; of an even number, the mean of the middle two."""
    values = sorted(values)
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    return {name: middle, f"{name}_min": values[0], f"{name}_max": values[-1]}


def _check(warmup: int, runs: int) -> None:
    if warmup < 0 or runs < 1:
        raise ValueError(f"warmup is 0 or more and runs 1 or more; got warmup={warmup}, runs={runs}")


def measure(
    fn: Callable[[], object], *, warmup: int = 2, runs: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict:
    """Median and extremes of ``runs`` timed calls after ``warmup`` untimed ones, and the peak memory of one call more.

    Returns seconds, seconds_min, seconds_max, runs, peak_bytes (see ``peak_bytes``). Waits for the GPU, if there is
    one, before it reads the clock. To compare two things, use ``paired``: machines drift.
    """
    _check(warmup, runs)
    for _ in range(warmup):
        fn()
    seconds = [_timed(fn, clock) for _ in range(runs)]
    return {**_spread("seconds", seconds), "runs": runs, "peak_bytes": peak_bytes(fn)}


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    warmup: int = 2,
    runs: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict:
    """Times two functions in turns, A B A B ..., so that what slows the machine for a while slows both.

    Returns a and b (each seconds, seconds_min, seconds_max), runs (pairs), and ratio, ratio_min, ratio_max: the seconds
    of A over those of B, pair by pair, so 2 says that B is twice as fast. No memory: use ``peak_bytes`` on each.
    """
    _check(warmup, runs)
    for _ in range(warmup):
        a()
        b()
    pairs = [(_timed(a, clock), _timed(b, clock)) for _ in range(runs)]
    return {
        "a": _spread("seconds", [first for first, _ in pairs]),
        "b": _spread("seconds", [second for _, second in pairs]),
        "runs": runs,
        **_spread("ratio", [first / second for first, second in pairs]),
    }


def peak_bytes(fn: Callable[[], object]) -> int | None:
    """The most memory that one call of ``fn`` held above what was held before it; what it returns is part of it.

    On a GPU: by torch's allocator, exact, of the current device only. Else on Linux: the kernel's own high-water mark
    of resident memory, reset before the call, so nothing is sampled and no peak is missed; pages that Python and the C
    library keep for reuse are handed back first, but what they cannot hand back is not seen when it is used again.
    Differences below a few MiB mean nothing there. Elsewhere None.
    """
    return memory.peak_bytes(fn, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def conditions() -> dict:
    """What every result file begins with: device, threads, commit, command, versions, UTC date.

    The commit ends in "+changes" where the working tree differed from it; it is "unknown" outside a git checkout.
    """
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "commit": commit() or "unknown",
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": versions(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return f"CPU, {found.group(1) if found else platform.machine()}, {os.cpu_count()} cores"
