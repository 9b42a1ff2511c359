"""The report that ships: every policy on both embedded tasks, beside all controls: ``python -m benchmarks.report``.

Two runs of ``vtprune bench``, one for each embedded model, into folders of ``benchmarks/results``; what was cut off
goes on where it stopped. Answers by question are not kept in the repository; tables, plots and their numbers are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.measure import ROOT
from vtprune.bench.choose_conditions import KNOW_NOTHING
from vtprune.cli import main as vtprune
from vtprune.policies.base import pruning_policies

RESULTS = "benchmarks/results"
KEEP_RATIOS = "0.5,0.25,0.1,0.05"

VARIANTS = {"embedded-image": ("fastv:layer=3",), "embedded-video": ()}
"""Beside each policy as it is; the question reaches the picture in layer 2 of the embedded image model."""

BATCHES = {"embedded-image": 64, "embedded-video": 32}


def policies(model: str) -> list[str]:
    """All that are registered, and variants; the controls are there anyway."""
    return [*sorted(set(pruning_policies()) - {*KNOW_NOTHING, "none"}), *VARIANTS[model]]


def command(model: str, more: Sequence[str] = ()) -> list[str]:
    """The arguments of ``vtprune`` for the report on one embedded model."""
    asked = ["bench", "--model", model, "--task", model, "--policy", *policies(model)]
    asked += ["--keep-ratio", KEEP_RATIOS, "--batch", str(BATCHES[model]), "--out", f"{RESULTS}/{model}"]
    return [*asked, *more]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=BATCHES, default=list(BATCHES))
    arguments, more = parser.parse_known_args(argv)
    return max(vtprune(command(model, more)) for model in arguments.model)


if __name__ == "__main__":
    if not (ROOT / RESULTS).samefile(RESULTS):
        sys.exit(f"run it in {ROOT.name}, the repository's root: results go to {RESULTS}")
    sys.exit(main())
