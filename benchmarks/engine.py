"""What pruning costs and saves inside one model: ``python -m benchmarks.engine``, about ten minutes on two cores.

Everything is a ratio within one run: keeping everything against the unwrapped model, pruning before the LLM against a
prompt that was short from the start, pruning in layer 2 against what its FLOPs allow, and against a peer that masks.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.engine_hooks import hook_rows
from benchmarks.engine_memory import memory_rows, settings
from benchmarks.engine_model import SHAPES, build
from benchmarks.engine_ragged import ragged_rows
from benchmarks.engine_select import GRIDS, select_rows
from benchmarks.engine_speed import LAYER, Bench, decode_rows, kv_rows, noise_row, prefill_rows, timed
from benchmarks.engine_table import tables, verdicts
from benchmarks.engine_time import clock_of
from benchmarks.measure import ROOT, conditions, paired
from vtprune.policies.base import pruning_policies

RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("speed", "ragged", "memory", "hooks", "select")
QUICK = {"images": [1], "keep": [0.25], "rounds": [2], "steps": 5, "hook_rounds": 12, "sizes": [576, 2880]}


def numbers(of: Callable = int) -> Callable[[str], list]:
    return lambda text: [of(part) for part in text.split(",")]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="under 90 s: one image, few rounds; writes no file unless --out is given")
    add("--shape", choices=sorted(SHAPES), default="0.5b", help="of the decoder")
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="auto: the faster of two")
    add("--threads", type=int, default=1, help="on a CPU; with 1, CPU time is read instead of the wall clock")
    add("--images", type=numbers(), default=[1, 5], help="images of 576 visual tokens in the prompt, for each prompt")
    add("--text", type=int, default=64, help="text tokens in the prompt")
    add("--keep", type=numbers(float), default=[0.25, 0.1], help="keep ratios")
    add("--rounds", type=numbers(), default=[4, 2], help="prefills of each configuration, for each prompt")
    add("--steps", type=int, default=12, help="decode steps of each configuration")
    add("--hook-rounds", type=int, default=30, help="rounds of five decode steps of the narrow model, for each case")
    add("--sizes", type=numbers(), default=sorted(GRIDS), help=f"visual tokens to select from, of {sorted(GRIDS)}")
    add("--policies", type=lambda text: text.split(","), default=pruning_policies(), help="to select with")
    add("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"of {','.join(PARTS)}")
    add("--out", type=Path, help="JSON file; by default benchmarks/results/engine-<device>.json")
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(QUICK)
    if len(args.rounds) != len(args.images):
        parser.error(f"--rounds has one number for each of --images {args.images}; got {args.rounds}")
    if unknown := {*args.parts} - {*PARTS} | {*map(str, args.sizes)} - {*map(str, GRIDS)}:
        parser.error(f"--parts are of {', '.join(PARTS)} and --sizes of {sorted(GRIDS)}; got {', '.join(unknown)}")
    return args


def faster_dtype(device: str) -> str:
    """bfloat16 or float32, whichever multiplies matrices of this size faster; bfloat16 on a GPU."""
    if device != "cpu":
        return "bfloat16"

    def product(dtype: torch.dtype) -> Callable:
        x, w = torch.randn(512, 896).to(dtype), torch.randn(4864, 896).to(dtype)
        return lambda: torch.nn.functional.linear(x, w)

    found = paired(product(torch.float32), product(torch.bfloat16), warmup=2, runs=5)
    return "bfloat16" if found["ratio"] > 1 else "float32"


class Teller:
    """Prints each step of the work with the time since the start."""

    def __init__(self):
        self.start = datetime.now(timezone.utc)

    def __call__(self, line: str) -> None:
        seconds = (datetime.now(timezone.utc) - self.start).total_seconds()
        print(f"[{seconds:4.0f} s] {line}", file=sys.stderr, flush=True)


def speed_rows(args: argparse.Namespace, clock: dict, tell: Teller) -> list[dict]:
    """Prefill, decode steps and cache bytes, for each prompt; ``uniform`` beside ``random`` in the first only."""
    model, rows = build(SHAPES[args.shape], getattr(torch, args.dtype), args.device), []
    for images, rounds in zip(args.images, args.rounds):
        policies = ("random",) if rows else ("random", "uniform")
        bench = Bench(model, images, args.text, args.keep, policies)
        bench.start(tell)
        calls = {name: runner.prefill for name, runner in bench.runners.items()}
        tell("prefills")
        seconds, hooks = timed(bench, calls, rounds, clock, time.thread_time, tell)
        rows += [noise_row(bench, seconds), *prefill_rows(bench, seconds, hooks), *kv_rows(bench)]
        tell("decode steps")
        rows += decode_rows(bench, args.steps, clock, tell)
    return rows


def all_rows(args: argparse.Namespace, clock: dict, tell: Teller) -> list[dict]:
    rows: list[dict] = []
    if "memory" in args.parts:
        tell("peak memory, in processes of their own")
        child = ["--shape", args.shape, "--dtype", args.dtype, "--device", args.device]
        child += ["--images", str(max(args.images)), "--text", str(args.text)]
        wanted = settings(args.keep, LAYER)
        rows += memory_rows(child, wanted[:3] if args.quick else wanted, tell, 2 if args.device == "cpu" else 1)
    if "hooks" in args.parts:
        rows += hook_rows(args.hook_rounds, tell=tell)
    if "select" in args.parts:
        rows += select_rows(args.policies, args.sizes, args.device, clock, tell)
    if "ragged" in args.parts:
        of = (args.shape, getattr(torch, args.dtype), args.device)
        rows += ragged_rows(*of, args.images, args.text, args.rounds, clock, tell)
    if "speed" in args.parts:
        rows += speed_rows(args, clock, tell)
    return rows


def result_file(args: argparse.Namespace) -> Path | None:
    """Where the rows are written; a quick run leaves no file of its own accord."""
    if args.out or args.quick:
        return args.out
    device = "cpu" if args.device == "cpu" else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    return RESULTS / "-".join(["engine", *([] if args.shape == "0.5b" else [args.shape]), f"{device}.json"])


def main(argv: list[str] | None = None) -> None:
    args, tell = parse(argv), Teller()
    torch.set_num_threads(args.threads)
    if args.dtype == "auto":
        args.dtype = faster_dtype(args.device)
    name, clock = clock_of(args.device, args.threads)
    tell(f"{args.shape} in {args.dtype} on {args.device}, by {name}")
    begin = conditions()
    rows = all_rows(args, clock, tell)
    result = {**begin, "clock": name, "shape": args.shape, "dtype": args.dtype, "rows": rows}
    print(f"{begin['device']}, {args.threads} threads, {args.shape} in {args.dtype}, {name}\n")
    print(tables(rows) + "\n\n" + verdicts(rows))
    if path := result_file(args):
        path.write_text(json.dumps(result, indent=1) + "\n")
        tell(f"written to {path}")


if __name__ == "__main__":
    main()
