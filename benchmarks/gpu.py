"""Everything that is owed to a GPU, in one command and eight minutes: ``python -m benchmarks.gpu --out FILE``.

It needs torch, Triton and transformers and installs nothing: the tests of the kernels and those marked ``gpu`` run
without pytest, then the kernels are timed, then the engine on a model of 7B shape whose random weights are made on the
device. Each part runs in processes of its own, with a share of the time; what it leaves goes to those after it, and
what did not run is named. With ``--device cpu --tiny`` it shows that it works, and says nothing else.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.gpu_tests import read_notes
from benchmarks.kernels_time import Teller
from benchmarks.measure import ROOT, conditions

MARGIN = 15.0
"""Seconds between the end of the time that a part is told it has, and the end of its process."""
TRIES = 4
"""Processes for the tests, each going on behind the test that the last one died of."""


@dataclass(frozen=True)
class Part:
    """One command. share: of the whole time. command: behind ``python -m``; "{budget}" and "{out}" are filled in."""

    name: str
    share: float
    command: tuple[str, ...]


def parts(device: str, tiny: bool) -> list[Part]:
    """What runs, in order."""
    if tiny:
        files = [str(ROOT / "tests" / "kernels" / f"test_{name}.py") for name in ("dispatch", "transition")]
        kernels = ("--tiny", "--rounds", "1", "--only", "gather_tokens", "transition")
        engine = ("--shape", "tiny", "--images", "1", "--rounds", "1", "--keep", "0.25", "--steps", "1")
        prompts = ("--dtype", "float32", "--policies", "random", "--sizes", "576")
        return [
            Part("tests", 0.4, ("benchmarks.gpu_tests", "--budget", "{budget}", "--notes", "{out}", "--files", *files)),
            Part("kernels", 0.3, _kernels(device, *kernels)),
            Part("engine: speed", 0.2, _engine(device, "speed", *engine, *prompts)),
            Part("engine: select", 0.05, _engine(device, "select", *engine, *prompts)),
            Part("engine: ragged", 0.05, _engine(device, "ragged", *engine, *prompts)),
        ]
    engine = ("--shape", "7b", "--images", "1,5", "--rounds", "5,4", "--dtype", "bfloat16")
    return [
        Part("tests", 0.28, ("benchmarks.gpu_tests", "--budget", "{budget}", "--notes", "{out}")),
        Part("kernels", 0.27, _kernels(device, "--patience", "1")),
        Part("engine: speed", 0.2, _engine(device, "speed", *engine)),
        Part("engine: ragged", 0.08, _engine(device, "ragged", *engine)),
        Part("engine: select", 0.05, _engine(device, "select", *engine)),
        Part("engine: memory", 0.12, _engine(device, "memory", *engine, "--keep", "0.25")),
    ]


def _kernels(device: str, *options: str) -> tuple[str, ...]:
    return ("benchmarks.kernels", "--device", device, "--budget", "{budget}", "--out", "{out}", *options)


def _engine(device: str, part: str, *options: str) -> tuple[str, ...]:
    return ("benchmarks.engine", "--device", device, "--parts", part, "--out", "{out}", *options)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="JSON file; what is printed goes beside it")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    add("--tiny", action="store_true", help="shapes that say nothing about time")
    add("--minutes", type=float, default=8.0, help="for everything together (default: 8)")
    add("--only", nargs="+", metavar="PART", help="parts that begin so: tests, kernels, engine")
    add("--commit", help="of the code, where it is not a git checkout")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error(f"--minutes is more than 0; got {args.minutes}")
    names = [part.name for part in parts(args.device, args.tiny)]
    unknown = [part for part in args.only or () if not any(name.startswith(part) for name in names)]
    if unknown:
        parser.error(f"--only takes beginnings of {', '.join(names)}; got {', '.join(unknown)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, and there is none; try --device cpu --tiny")
    return args


def environment(device: str) -> dict[str, str]:
    """Of the processes: the packages are found as they lie in the checkout, and nobody asks the network."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    # on a CPU the tests go through Triton's interpreter; it must not slow down a GPU
    found.pop("TRITON_INTERPRET", None)
    return found if device == "cuda" else {**found, "TRITON_INTERPRET": "1"}


def run(part: Part, limit: float, out: Path, device: str) -> tuple[str, str]:
    """How one process ended, and what it printed; it and those that it started are ended after ``limit`` seconds."""
    told = max(1.0, limit - MARGIN) if limit > 2 * MARGIN else limit / 2
    command = [text.format(budget=f"{told:.0f}", out=out) for text in part.command]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        **{"cwd": ROOT, "env": environment(device), "text": True, "start_new_session": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
    try:
        printed, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, errors = process.communicate()
        return f"ended after {limit:.0f} s", printed
    if process.returncode:
        lines = errors.strip().splitlines() or ["no output"]
        return f"failed ({process.returncode}): {lines[-1]}", printed
    return "done", printed


def run_tests(part: Part, limit: float, out: Path, device: str, tell: Teller) -> tuple[str, str]:
    """As ``run``; a test that takes the process with it is noted, and another process goes on behind it."""
    end = tell.seconds + limit
    for _ in range(TRIES):
        outcome, _ = run(part, max(1.0, end - tell.seconds), out, device)
        died = [test for test, note in read_notes(out).items() if note["outcome"] == "began"]
        with out.open("a") as file:
            for test in died:
                file.write(json.dumps({"test": test, "outcome": "failed", "why": f"it never ended: {outcome}"}) + "\n")
        if outcome == "done" or tell.seconds > end - MARGIN:
            break
    return outcome, counts(read_notes(out).values())


def counts(notes) -> str:
    """Of each outcome how many; then every failure."""
    outcomes = [note["outcome"] for note in notes]
    lines = [", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes))) or "no tests"]
    return "\n".join(lines + [f"  {n['test']}: {n.get('why', '')}" for n in notes if n["outcome"] == "failed"])


def result_of(part: Part, out: Path) -> object:
    """What a part wrote: its JSON, or for the tests all but those that passed; None where it wrote nothing."""
    if not out.exists():
        return None
    if part.name == "tests":
        notes = list(read_notes(out).values())
        passed = sum(note["outcome"] == "passed" for note in notes)
        return {"passed": passed, "others": [note for note in notes if note["outcome"] != "passed"]}
    return json.loads(out.read_text())


def all_parts(args: argparse.Namespace, tell: Teller) -> list[dict]:
    """A row for each part; every one may take its share of the whole and what those before it left."""
    wanted = [p for p in parts(args.device, args.tiny) if not args.only or p.name.startswith(tuple(args.only))]
    whole, due, rows = 60 * args.minutes, 0.0, []
    with TemporaryDirectory() as folder:
        for i, part in enumerate(wanted):
            due += whole * part.share / sum(p.share for p in wanted)
            limit, out = due - tell.seconds, Path(folder) / f"part{i}.json"
            row = {"part": part.name, "command": " ".join(part.command)}
            if limit < 1:
                rows.append({**row, "outcome": "skipped: the time was up"})
                continue
            tell(f"{part.name}: at most {limit:.0f} s")
            begin = tell.seconds
            if part.name == "tests":
                outcome, printed = run_tests(part, limit, out, args.device, tell)
            else:
                outcome, printed = run(part, limit, out, args.device)
            row |= {"outcome": outcome, "seconds": tell.seconds - begin, "printed": printed}
            rows.append({**row, "result": result_of(part, out)})
            tell(f"{part.name}: {outcome}")
    return rows


def text_of(result: dict) -> str:
    """What every part printed, under its name."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"{result['device']}, {versions}, {result['date']}, {result['commit']}"]
    for row in result["parts"]:
        took = f" in {row['seconds']:.0f} s" if "seconds" in row else ""
        lines += [f"==== {row['part']}: {row['outcome']}{took}", row.get("printed", "").strip()]
    return "\n\n".join(line for line in lines if line)


def main(argv: Sequence[str] | None = None) -> None:
    args, tell = parse(argv), Teller(None)
    begin = conditions()
    if args.device == "cpu" and torch.cuda.is_available():
        raise SystemExit("--device cpu is for machines without a GPU: set CUDA_VISIBLE_DEVICES to nothing")
    result = {**begin, "commit": args.commit or begin["commit"], "parts": all_parts(args, tell)}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".txt").write_text(text_of(result) + "\n")
    print(text_of(result))
    tell(f"written to {args.out}")


if __name__ == "__main__":
    main()
