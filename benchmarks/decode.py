"""What policies of the KV cache save while decoding, and what they cost: ``python -m benchmarks.decode``.

Four experiments, each with a file of its own. ``speed``: times of the first token and of decode steps far on, in turns
with the unpruned model. ``memory``: peaks, and bytes of keys and values. ``second-turn``: answers of the embedded
models to questions that came after the cache was cut down, which is what such a policy is there for. ``first-turn``:
answers to questions in the prompt; those are a word or two, and a policy of the cache cannot change the first. Beside
every policy of the cache stand pruned prompts that leave as many bytes of keys and values.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.decode_answers import LOADERS, TURNS, answer_rows
from benchmarks.decode_asking import ASKED
from benchmarks.decode_conditions import CACHE, NONE, PREFILL, Condition, grid
from benchmarks.decode_memory import memory_rows
from benchmarks.decode_model import SHAPES, shape_of
from benchmarks.decode_table import text_of
from benchmarks.decode_time import WARMUP, group_rows, grouped
from benchmarks.engine import Teller
from benchmarks.engine_model import build, prompt
from benchmarks.engine_time import clock_of
from benchmarks.measure import ROOT, conditions
from benchmarks.video import device_name
from benchmarks.video_ledger import Ledger
from vtprune.bench.choose_conditions import read_policy

EXPERIMENTS = ("speed", "memory", *TURNS)
FIRST_SEED = 5000
"""Pictures and clips before it were looked at by others."""
SIZES = ("layers", "hidden", "heads", "kv_heads", "mlp")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--experiment", nargs="+", choices=EXPERIMENTS, default=["second-turn"], help="default: second-turn")
    add("--keep", nargs="+", type=float, default=[0.5, 0.2, 0.1], help="shares of visual keys and values that stay")
    add("--policies", nargs="+", default=[*CACHE, *PREFILL], metavar="NAME[:OPTION=VALUE...]")
    add("--models", nargs="+", choices=tuple(LOADERS), default=list(LOADERS), help="embedded ones, for answers")
    add("--subjects", type=int, default=100, help=f"pictures and clips, with up to {ASKED} questions about each")
    add("--first", type=int, default=FIRST_SEED, help="number of the first picture and clip")
    add("--shape", choices=sorted(SHAPES), help="of the decoder that is timed (default: small; on a GPU 7b)")
    for size in SIZES:
        add(f"--{size.replace('_', '-')}", type=int, help="instead of the shape's")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32; on a GPU bfloat16")
    add("--images", type=int, default=5, help="of 576 visual tokens, in each prompt that is timed")
    add("--text", type=int, default=64, help="text tokens in it")
    add("--batch", nargs="+", type=int, default=[1, 4], help="prompts at a time")
    add("--generated", nargs="+", type=int, default=[64, 256, 1024], help="tokens of an answer, when steps are timed")
    add("--steps", type=int, default=12, help="timed at each of these lengths")
    add("--rounds", type=int, default=3, help="prompts that each condition reads")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add("--threads", type=int, default=1, help="on a CPU; with 1, CPU time is read instead of the wall clock")
    add("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for rows and tables")
    args = parser.parse_args(argv)
    args.shape = args.shape or ("small" if args.device == "cpu" else "7b")
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    if any(not 0 < ratio <= 1 for ratio in args.keep):
        parser.error(f"--keep takes fractions of visual keys and values KEPT, in (0, 1]; got {args.keep}")
    if sorted(args.generated) != args.generated or args.generated[0] <= args.steps + WARMUP:
        parser.error(f"--generated ascends and begins above --steps and {WARMUP} more; got {args.generated}")
    try:
        for policy in args.policies:
            read_policy(policy).make(args.keep[0])
    except ValueError as error:
        parser.error(f"--policies: {error}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, and there is none; use --device cpu")
    return args


def wanted(args: argparse.Namespace) -> list[Condition]:
    """All conditions but the unpruned model, which is always there."""
    return grid([name for name in args.policies if name != NONE], args.keep)


def speed_rows(args: argparse.Namespace, ledger: Ledger, tell: Teller) -> list[dict]:
    """Times, policy by policy; a policy that is in the ledger is not timed again."""
    clock, rows, model = clock_of(args.device, args.threads)[1], [], None
    for batch in args.batch:
        for policy, group in grouped(wanted(args)).items():
            piece = f"speed {batch} {[one.name for one in group]}"
            if piece not in ledger.found:
                model = model or build(_shape(args), getattr(torch, args.dtype), args.device)
                inputs = prompt(model, [args.images] * batch, args.text)
                how = (args.generated, args.rounds, args.steps, clock)
                found = group_rows(model, inputs, group, *how)
                ledger.add(piece, [{**row, "batch": batch, "beside": policy} for row in found])
                tell(f"speed, batch of {batch}: {policy}")
            rows += ledger.found[piece]
    return rows


def peak_rows(args: argparse.Namespace, ledger: Ledger, tell: Teller) -> list[dict]:
    """Peak memory, condition by condition."""
    rows = []
    for batch in args.batch:
        asked = [Condition(), *wanted(args)]
        lacking = [one for one in asked if f"memory {batch} {one.name}" not in ledger.found]
        sizes = {name: getattr(args, name) for name in SIZES}
        child = ["--shape", args.shape, "--sizes", json.dumps(sizes), "--dtype", args.dtype, "--device", args.device]
        child += ["--images", str(args.images), "--text", str(args.text), "--batch", str(batch)]
        child += ["--generated", *map(str, args.generated)]
        for one, row in zip(lacking, memory_rows(child, lacking) if lacking else (), strict=True):
            ledger.add(f"memory {batch} {one.name}", {**row, "batch": batch})
            tell(f"memory, batch of {batch}: {one.name}")
        rows += [ledger.found[f"memory {batch} {one.name}"] for one in asked]
    return rows


def _shape(args: argparse.Namespace):
    return shape_of(args.shape, {name: getattr(args, name) for name in SIZES})


def run(args: argparse.Namespace, experiment: str, ledger: Ledger, tell: Teller) -> list[dict]:
    """The rows of one experiment."""
    if experiment == "speed":
        return speed_rows(args, ledger, tell)
    if experiment == "memory":
        return peak_rows(args, ledger, tell)
    seeds = range(args.first, args.first + args.subjects)
    return answer_rows(args.models, TURNS[experiment], seeds, wanted(args), ledger, tell)


def about(args: argparse.Namespace, experiment: str) -> dict:
    """What a result says of its run beside ``conditions()``: rows that differ in it are not mixed."""
    if experiment in TURNS:
        return {"experiment": experiment, "models": "embedded", "dtype": "float32", "device_type": "cpu"}
    shape = {"shape": args.shape, **vars(_shape(args)), "dtype": args.dtype, "images": args.images, "text": args.text}
    more = {name: getattr(args, name) for name in ("generated", "steps", "rounds", "threads")}
    clock = clock_of(args.device, args.threads)[0]
    return {"experiment": experiment, **shape, **more, "clock": clock, "device_type": args.device}


def main(argv: Sequence[str] | None = None) -> None:
    args, tell = parse(argv), Teller()
    torch.set_num_threads(args.threads)
    begin = conditions()
    for experiment in args.experiment:
        facts = about(args, experiment)
        base = args.out / f"decode-{experiment}-{'cpu' if experiment in TURNS else device_name(args.device)}"
        ledger = Ledger(base.with_suffix(".part.jsonl"), {**facts, "commit": begin["commit"]})
        result = {**begin, **facts, "rows": run(args, experiment, ledger, tell)}
        text = text_of(result)
        base.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        base.with_suffix(".md").write_text(text)
        sys.stdout.write(text)
        ledger.close()


if __name__ == "__main__":
    main()
