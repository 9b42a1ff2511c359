"""Runs the kernels' tests, and those marked ``gpu``, without pytest: ``python -m benchmarks.gpu_tests``.

Tests marked ``gpu`` come first. Every test is noted before it begins, so that a run that dies can be gone on with: the
tests in the file of notes are not run again.
"""

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.kernels_time import Teller
from benchmarks.measure import ROOT

TESTS = ROOT / "tests"
DEVICE_IS_GONE = ("CUDA error", "device-side assert", "illegal memory access", "an illegal instruction")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tests", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--files", type=Path, nargs="+", help="default: tests/kernels, and all others with a test marked gpu")
    add("--budget", type=float, help="seconds after which no test is begun (default: no end)")
    add("--notes", type=Path, required=True, help="file of JSON lines, one for each test; it is gone on with")
    return parser.parse_args(argv)


def default_files() -> list[Path]:
    kernels = sorted((TESTS / "kernels").glob("test_*.py"))
    marked = [path for path in sorted(TESTS.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    return [*kernels, *(path for path in marked if path not in kernels)]


def load(path: Path) -> ModuleType:
    """A test file as a module, by its place in the repository where it has one."""
    if path.is_relative_to(ROOT):
        return importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fixtures_of(path: Path, module: ModuleType) -> dict[str, Callable]:
    """Those of the module and of a conftest beside it. The one above all tests needs pytest itself."""
    places = [module]
    if (conftest := path.with_name("conftest.py")).exists() and path.parent != TESTS:
        places.insert(0, load(conftest))
    known = ((name, f) for place in places for name, f in vars(place).items() if inspect.isfunction(f))
    return {name: f for name, f in known if hasattr(f, "fixture_options")}


class Notes:
    """What became of each test: the last line about it counts."""

    def __init__(self, path: Path):
        self.path, self.outcomes = path, read_notes(path)

    def write(self, test: str, outcome: str, why: str = "") -> None:
        self.outcomes[test] = {"test": test, "outcome": outcome, **({"why": why} if why else {})}
        with self.path.open("a") as file:
            file.write(json.dumps(self.outcomes[test]) + "\n")


def read_notes(path: Path) -> dict[str, dict]:
    """By test; "began" is the outcome of one that never ended."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {note["test"]: note for note in map(json.loads, lines)}


def collected(paths: Sequence[Path], notes: Notes) -> list[tuple[str, Callable, dict, list, dict]]:
    """(name, function, parameters, marks, fixtures) of every case, those marked gpu first; ``install`` came before."""
    from benchmarks.gpu_pytest import cases, marks_of

    found: tuple[list, list] = ([], [])
    for path in paths:
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        try:
            module = load(path)
            fixtures = fixtures_of(path, module)
        except Exception as error:  # noqa: BLE001, whatever keeps a file from being imported; mostly what it imports
            notes.write(name, "skipped", f"{type(error).__name__}: {error}")
            continue
        for test, function in list(vars(module).items()):
            if not test.startswith("test_") or not callable(function) or getattr(function, "__test__", True) is False:
                continue
            marked = "gpu" in marks_of(function)
            if marked or path.parent.name == "kernels" or not path.is_relative_to(ROOT):
                found[not marked].extend(
                    (f"{name}::{label}", function, *more, fixtures) for label, *more in cases(function)
                )
    return [*found[0], *found[1]]


def run(paths: Sequence[Path], notes: Notes, tell: Teller, cuda: bool) -> Iterator[str]:
    """Runs what has no note yet; yields each outcome: passed, failed, skipped or not run."""
    from benchmarks.gpu_pytest import Skipped, marks_of, run_case

    for name, function, chosen, marks, fixtures in collected(paths, notes):
        if name in notes.outcomes and notes.outcomes[name]["outcome"] != "not run":
            continue
        if tell.spent:
            notes.write(name, "not run", "the time was up")
        elif "gpu" in marks_of(function) and not cuda:
            notes.write(name, "skipped", "needs a CUDA device")
        else:
            notes.write(name, "began")
            try:
                run_case(function, chosen, marks, fixtures)
            except Skipped as error:
                notes.write(name, "skipped", str(error))
            except Exception as error:  # noqa: BLE001, whatever a test raises is its failure
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
                notes.write(name, "failed", text)
                if any(part in text for part in DEVICE_IS_GONE):
                    sys.exit(3)  # nothing that this process asks of the device can succeed any more
            else:
                notes.write(name, "passed")
        yield notes.outcomes[name]["outcome"]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    import torch

    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    if not cuda:
        # read by triton when it is imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from benchmarks import gpu_pytest

    gpu_pytest.install()
    files = [path.resolve() for path in args.files or default_files()]
    outcomes = list(run(files, Notes(args.notes), Teller(args.budget), cuda))
    print(json.dumps({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}))


if __name__ == "__main__":
    main()
