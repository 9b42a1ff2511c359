"""How long each operation of the kernels takes, and what the device allows: ``python -m benchmarks.kernels``.

On a GPU: the kernel beside its definition in torch, beside plain torch, and beside the literal form of the
publications, by events on the device with cold caches. On a CPU the definition is what runs, in CPU time of one thread.
The limit is the larger of two times: the bytes that must move at the speed of a large copy, and the FLOPs at the speed
of a large matrix product, both measured on the same device in the same run.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.engine_time import clock_of
from benchmarks.kernels_limits import measured
from benchmarks.kernels_rows import OPERATIONS, Bench
from benchmarks.kernels_table import summary, tables
from benchmarks.kernels_time import Teller
from benchmarks.measure import ROOT, conditions

RESULTS = ROOT / "benchmarks" / "results"
SIZES, WIDTHS = (576, 2880, 16384, 65536), (3584, 896, 4096)
TINY_SIZES, TINY_WIDTHS = (16, 64), (8,)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="default: bfloat16")
    add("--threads", type=int, default=1, help="on a CPU; with 1, CPU time is read instead of the wall clock")
    add("--sizes", type=int, nargs="+", metavar="N", help=f"tokens (default: {' '.join(map(str, SIZES))})")
    add("--widths", type=int, nargs="+", metavar="D", help=f"of a token (default: {' '.join(map(str, WIDTHS))})")
    add("--only", nargs="+", metavar="NAME", help=f"operations that begin so, of: {', '.join(OPERATIONS)}")
    add("--rounds", type=int, default=3, help="of everything, in turns; brief calls get more (default: 3)")
    add("--patience", type=float, default=5.0, help="seconds that one call may be expected to take (default: 5)")
    add("--budget", type=float, help="seconds after which nothing more is begun (default: no end)")
    add("--tiny", action="store_true", help="shapes that say nothing about time; writes no file unless --out is given")
    add("--out", type=Path, help="JSON file, table and plot beside it; by default where results are kept")
    add("--from", dest="source", type=Path, help="draw table and plot from this JSON file, and measure nothing")
    args = parser.parse_args(argv)
    args.sizes = args.sizes or (TINY_SIZES if args.tiny else SIZES)
    args.widths = args.widths or (TINY_WIDTHS if args.tiny else WIDTHS)
    if min(*args.sizes, *args.widths, args.rounds, args.threads) < 1:
        parser.error("--sizes, --widths, --rounds and --threads are 1 or more")
    unknown = [part for part in args.only or () if not any(name.startswith(part) for name in OPERATIONS)]
    if unknown:
        parser.error(f"--only takes beginnings of {', '.join(OPERATIONS)}; got {', '.join(unknown)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, and there is none; use --device cpu")
    return args


def all_rows(args: argparse.Namespace, clock: dict) -> list[dict]:
    """The limits, then every operation: width by width, small sizes first."""
    tell, dtype = Teller(args.budget), getattr(torch, args.dtype)
    tell("limits")
    rows, limits = measured(args.device, dtype, args.rounds, clock, args.tiny)
    bench = Bench(args.device, dtype, limits, args.rounds, clock, args.patience)
    names = [name for name in OPERATIONS if not args.only or name.startswith(tuple(args.only))]
    for d in args.widths:
        for n in sorted(args.sizes):
            tell(f"{n} x {d}")
            for name in names:
                if tell.spent:
                    why = f"the budget of {args.budget:g} s was spent"
                    rows.append({"what": "kernel", "op": name, "n": n, "d": d, "skipped": why})
                    continue
                rows.append(bench.row(name, n, d))
    return rows


def result_file(args: argparse.Namespace) -> Path | None:
    """Where the rows are written; a run of some of the rows leaves no file of its own accord."""
    whole = tuple(args.sizes) == SIZES and tuple(args.widths) == WIDTHS and not args.only
    if args.out or args.tiny or not whole:
        return args.out
    device = "cpu" if args.device == "cpu" else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    return RESULTS / f"kernels-{device}.json"


def text_of(result: dict) -> str:
    """What is printed of a result."""
    head = f"{result['device']}, {result['threads']} threads, {result['clock']}, {result['date']}, {result['commit']}"
    return "\n\n".join([head, tables(result["rows"]), summary(result["rows"])])


def draw(result: dict, path: Path) -> None:
    """The plot, where matplotlib is installed."""
    try:
        from benchmarks.kernels_plot import plot
    except ImportError as error:
        print(f"no plot: {error}; draw it elsewhere with --from", file=sys.stderr)
        return
    plot(result["rows"], result["device"], path)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.source:
        result, path = json.loads(args.source.read_text()), args.out or args.source
    else:
        torch.set_num_threads(args.threads)
        clock_name, clock = clock_of(args.device, args.threads)
        if args.device == "cuda":
            clock_name = "events on the device, cold caches"
        result = {**conditions(), "clock": clock_name}
        result["rows"], path = all_rows(args, clock), result_file(args)
    print(text_of(result))
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".txt").write_text(text_of(result) + "\n")
        draw(result, path.with_suffix(".png"))
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
