"""How long each policy takes to select: ``python -m benchmarks.policies``, best on a machine that does nothing else.

Three questions. How long does every registered policy select when its signals are there, and how much memory does it
hold meanwhile (``--parts selection``, a few minutes)? What share of the unpruned prefill of a 7B model is it with the
signals (``--parts signals``, once, prompts up to 2,880 tokens; ``--parts share``, some policies, longer prompts too)? A
prefill of that size is not run but derived: its FLOPs at the rate at which this machine multiplies matrices of the
decoder's shapes, in the faster of its dtypes, timed next to the policy. And how many times as fast is that as the
method taken literally from its publication, with the same answer?
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch

from benchmarks import policies_selection as alone
from benchmarks.engine_time import clock_of
from benchmarks.measure import ROOT, conditions
from benchmarks.policies_given import Prompt
from benchmarks.policies_mmr import FEATURES, KEEP, QUICK_SIZES, SIZES, mmr_row
from benchmarks.policies_rows import Case, literal_row, settings, share_row
from benchmarks.policies_scene import Scene
from benchmarks.policies_shapes import QUICK, SHAPES, Product, Shape, prefill_row, rate_rows
from benchmarks.policies_table import summary, tables
from vtprune.policies.base import POLICIES, pruning_policies

RESULTS = ROOT / "benchmarks" / "results"
NAMES = ("random", "uniform", "fastv", "vtc_cls", "transprune", "idpruner", "framefusion", "quota")
"""Policies that are timed with the library's own code for their signals, and against literal forms."""
MMR = "mmr"
PARTS = ("selection", "signals", "share", MMR)
LONGEST = 5000
"""Visual tokens of a prompt up to which every policy is also timed with its signals."""
FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)

WEIGHT = {"fastv": 8, "vtc_cls": 10, "transprune": 12, "idpruner": 10}
"""Roughly how long a policy takes for each thousand visual tokens, to say how much time is left; others take 1."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny shapes that say nothing about time; writes no file")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add("--threads", type=int, default=1, help="on a CPU; with 1, CPU time is read instead of the wall clock")
    add("--rounds", type=int, help="of everything, in turns; brief calls get more, long ones fewer (default: 3)")
    add("--keep", type=float, nargs="+", default=[0.25, 0.1], metavar="RATIO", help="keep ratios of the policies")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--only", nargs="+", metavar="NAME", help=f"some of the registered policies and {MMR}")
    add("--models", nargs="+", metavar="NAME", help=f"some of: {', '.join(SHAPES)}")
    add("--out", type=Path, help="JSON file, the tables beside it; by default where results are kept, of a whole run")
    args = parser.parse_args(argv)
    for option, given, known in (
        ("--only", args.only, {*NAMES, *POLICIES, MMR}),
        ("--models", args.models, {*SHAPES}),
    ):
        if unknown := set(given or ()) - known:
            parser.error(f"{option} takes some of {', '.join(sorted(known))}; got {', '.join(sorted(unknown))}")
    if not all(0 < ratio <= 1 for ratio in args.keep):
        parser.error(f"--keep takes fractions of visual tokens KEPT, in (0, 1]; got {args.keep}")
    if args.rounds is None:
        args.rounds = 1 if args.quick else 3
    if args.rounds < 1 or args.threads < 1:
        parser.error(f"--rounds and --threads are 1 or more; got {args.rounds} and {args.threads}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, and there is none; use --device cpu")
    return args


@dataclass
class Progress:
    """Tells what is done next, after how long, and about how much time is left."""

    whole: float
    done: float = 0.0
    start: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def __call__(self, title: str, weight: float) -> None:
        """weight: of what begins, as part of ``whole``."""
        spent = (datetime.now(timezone.utc) - self.start).total_seconds()
        left = f"about {spent / self.done * (self.whole - self.done):.0f} s left" if self.done else "time left unknown"
        print(f"[{spent:4.0f} s, {left}] {title}", file=sys.stderr, flush=True)
        self.done += weight


@dataclass(frozen=True)
class Job:
    """Rows to be made. head: what stands in a row if it fails."""

    title: str
    weight: float
    head: dict
    rows: Callable[[], list[dict]]


class Run:
    """One run: its arguments, its clock, the scene that is in memory."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.clock_name, self.clock = clock_of(args.device, args.threads)
        shapes = QUICK if args.quick else SHAPES
        self.shapes = [shapes[name] for name in (args.models or shapes)]
        self.products: dict[tuple[int, int], Product] = {}
        self.scene: Scene | None = None
        self.prompt: Prompt | None = None
        self.made: dict[tuple[str, str, str], dict] = {}

    def rates(self) -> list[dict]:
        rows, self.products = rate_rows(self.shapes, self.args.device, max(2, self.args.rounds), self.clock)
        return rows + [prefill_row(shape, self.product(shape)) for shape in self.shapes]

    def product(self, shape: Shape) -> Product:
        return self.products[shape.width, shape.mlp]

    def policy(self, name: str, shape: Shape) -> list[dict]:
        """All rows of a policy on one prompt."""
        rows = []
        for setting, options in settings(name, self.args.keep, shape):
            case = Case(name, setting, options, self.scene_of(shape))
            rows.append(share_row(case, self.product(shape), self.args.rounds, self.clock))
            rows.append(literal_row(case, self.args.rounds, self.clock, self.made.get(("literal", name, setting))))
            self.made["literal", name, setting] = rows[-1]
        return rows

    def scene_of(self, shape: Shape) -> Scene:
        if self.scene is None or self.scene.shape is not shape:
            self.scene = self.prompt = None  # one at a time is enough memory
            self.scene = Scene(shape, getattr(torch, self.product(shape).dtype), self.args.device)
        return self.scene

    def signals(self, name: str, shape: Shape) -> list[dict]:
        """A row with the signals of a policy on one prompt, of its first setting."""
        setting, options = next(alone.settings(name, self.args.keep))
        case = Case(name, setting, options, self.scene_of(shape))
        return [share_row(case, self.product(shape), 1, self.clock)]

    def selection(self, name: str, shape: Shape) -> list[dict]:
        """Rows of selecting alone on one prompt."""
        product, rows = self.product(shape), []
        if self.prompt is None or self.prompt.shape is not shape:
            self.scene = self.prompt = None
            self.prompt = Prompt(shape, getattr(torch, product.dtype), self.args.device)
        for setting, options in alone.settings(name, self.args.keep):
            before = self.made.get(("selection", name, setting))
            how = {"clock": self.clock, "before": before, "memory": not self.args.quick}
            rows.append(alone.selection_row(name, setting, options, self.prompt, product, **how))
            self.made["selection", name, setting] = rows[-1]
        return rows

    def mmr(self, kind: str, n: int, width: int, keep: float) -> list[dict]:
        return [mmr_row(kind, n, width, keep, self.args.rounds, self.clock, self.args.device)]

    def jobs(self) -> list[Job]:
        """What the arguments ask for."""
        rates = Job("matrix products", 30, {"what": "rate"}, self.rates)
        return [rates, *self._selection(), *self._signals(), *self._share(), *self._mmr()]

    def _everybody(self) -> Iterator[tuple[str, Shape]]:
        """Registered policies on the pictures or clips that they were published for, by size."""
        names = [name for name in self.args.only or pruning_policies() if name in POLICIES]
        known = {shape.model_type for shape in self.shapes}
        for kind, shape in alone.shapes(self.args.quick):
            yield from ((name, shape) for name in names if alone.kind_of(name) == kind and shape.model_type in known)

    def _selection(self) -> Iterator[Job]:
        for name, shape in self._everybody() if "selection" in self.args.parts else ():
            head = {"what": "selection", "policy": name, "model": shape.title, "visual": shape.visual}
            weight, make = 3 + 2 * shape.visual / 1000, partial(self.selection, name, shape)
            yield Job(f"{name} alone on {shape.title}, {shape.visual} tokens", weight, head, make)

    def _signals(self) -> Iterator[Job]:
        for name, shape in self._everybody() if "signals" in self.args.parts else ():
            if shape.visual <= LONGEST:
                head = {"what": "share", "policy": name, "model": shape.title, "visual": shape.visual}
                title = f"{name} with its signals on {shape.title}, {shape.visual} tokens"
                yield Job(title, 3 + 2 * shape.visual / 1000, head, partial(self.signals, name, shape))

    def _share(self) -> Iterator[Job]:
        names = [name for name in self.args.only or NAMES if name != MMR]
        for shape in self.shapes if "share" in self.args.parts else ():
            for name in names:
                head = {"what": "share", "policy": name, "model": shape.title, "visual": shape.visual}
                weight = WEIGHT.get(name, 1) * shape.visual / 1000
                yield Job(f"{name} on {shape.title}", weight, head, partial(self.policy, name, shape))

    def _mmr(self) -> Iterator[Job]:
        wanted = MMR in self.args.parts and MMR in (self.args.only or [MMR])
        for n, width in (QUICK_SIZES if self.args.quick else SIZES) if wanted else ():
            for keep in KEEP:
                for kind in FEATURES:
                    head = {"what": "mmr", "features": kind, "visual": n, "width": width, "keep_ratio": keep}
                    title, make = f"mmr on {n} x {width}, {kind}, keep {keep}", partial(self.mmr, kind, n, width, keep)
                    yield Job(title, 25 * (n / 8000) ** 2, head, make)

    def rows(self) -> list[dict]:
        """Every job in turn; one that fails is a row too."""
        jobs, rows = self.jobs(), []
        tell = Progress(sum(job.weight for job in jobs))
        for job in jobs:
            tell(job.title, job.weight)
            try:
                rows += job.rows()
            except FAILURES as error:
                rows.append({**job.head, "error": f"{type(error).__name__}: {error}"})
        return rows


def result_file(args: argparse.Namespace) -> Path | None:
    """Where the rows are written; a quick run, or one of some of the rows, leaves no file of its own accord."""
    if args.out or args.quick or args.only or args.models or len(set(args.parts)) < len(PARTS):
        return args.out
    device = "cpu" if args.device == "cpu" else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    return RESULTS / f"policies-{device}.json"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    begin, run = conditions(), Run(args)
    rows = run.rows()
    head = f"{begin['device']}, {args.threads} threads, {run.clock_name}, {begin['date']}, {begin['commit']}"
    text = "\n\n".join([head, tables(rows), summary(rows)])
    print(text)
    if path := result_file(args):
        path.write_text(json.dumps({**begin, "clock": run.clock_name, "rows": rows}, indent=1) + "\n")
        path.with_suffix(".txt").write_text(text + "\n")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
