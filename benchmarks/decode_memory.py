"""Peak memory of reading a prompt and of decoding on, above the loaded model, in a process with nothing else to do."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks.decode_conditions import Condition
from benchmarks.decode_model import SHAPES, runner, shape_of
from benchmarks.decode_time import head
from benchmarks.engine_model import build, cache_bytes, prompt
from benchmarks.measure import ROOT, peak_bytes

STEPS = 3
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc: tensors are handed back to the system at once, so that one condition does not hide in what another freed."""


def memory_row(model, inputs, one: Condition, generated: Sequence[int]) -> dict:
    """The peak while the prompt is read, and by number of tokens generated the peak of decode steps.

    Of the latter, what the cache held before them is counted in: it is exact.
    """
    row = {"what": "peak memory", **head(one)}
    try:
        mine = runner(model, inputs, one)
    except ValueError as error:
        return {**row, "skipped": str(error)}
    row["first_token_bytes"] = peak_bytes(mine.first_token)
    row |= {"kv_bytes": cache_bytes(mine.cache), "decode_bytes": {}}
    decoding = mine.decoding()
    mine.cache = None
    for length in generated:
        decoding.jump(length - STEPS)
        held = cache_bytes(decoding.cache)
        peak = peak_bytes(lambda: [decoding() for _ in range(STEPS)])
        row["decode_bytes"][str(length)] = None if peak is None else held + peak
    return row


def memory_rows(arguments: Sequence[str], conditions: Sequence[Condition]) -> Iterator[dict]:
    """A row for each condition as soon as it is there. arguments: this module's command line but ``--conditions``."""
    wanted = json.dumps([[one.policy, one.keep_ratio] for one in conditions])
    command = [sys.executable, "-m", "benchmarks.decode_memory", *arguments, "--conditions", wanted]
    environment = {**os.environ, **ALLOCATOR}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            yield json.loads(line)
    if child.returncode:
        raise RuntimeError(f"the process that measures memory ended with {child.returncode}; see above for why")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prints a row for each condition; benchmarks.decode calls it.")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--sizes", type=json.loads, default={}, help="of the decoder, instead of the shape's")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--generated", type=int, nargs="+", default=[64])
    parser.add_argument("--conditions", type=json.loads, default=[["none", 1.0]])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = build(shape_of(args.shape, args.sizes), getattr(torch, args.dtype), args.device)
    inputs = prompt(model, [args.images] * args.batch, args.text)
    for policy, ratio in args.conditions:
        row = memory_row(model, inputs, Condition(policy, ratio), args.generated)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
