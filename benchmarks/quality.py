"""What pruning costs in right answers on the embedded image model, beside controls: ``python -m benchmarks.quality``.

Every question goes through the stock path, processor and ``model.generate``, once for each condition. A method is
compared, question by question, with its random twin: as many tokens at the same sites, drawn at random. Scenes, of
which several questions are asked, are the units of the intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

import vtprune
from benchmarks.measure import ROOT, conditions
from benchmarks.quality_table import judged, table
from vtprune.cli.options import make_policy
from vtprune.embedded import load_image
from vtprune.embedded.evaluate import FIRST_SEED, Asked, answers, show
from vtprune.embedded.scenes import make_scene
from vtprune.policies.base import top_rows
from vtprune.policies.random import Random
from vtprune.report import Report
from vtprune.tokens import BEFORE_LLM, Selection, VisualTokens

KEEP_RATIOS = (0.5, 0.25, 0.1, 0.05)
SEEDS = (0, 1, 2)
TWIN_SEEDS = (0, 1)
BLIND = ("wrong picture", "grey picture", "no picture")
POLICIES = (
    *("random", "uniform", "pool", "vtc_cls", "vtc_cls:positions=original", "idpruner", "quota", "fastv"),
    *("fastv:layer=3", "transprune", "transprune:criteria=transition", "transprune:criteria=attention", "framefusion"),
)
"""A name and its options, ``name:option=value:option=value``; ``positions`` is that of ``vtprune.wrap``."""


def held_out(n_questions: int, first_seed: int = FIRST_SEED) -> list[Asked]:
    """All questions about the first scenes of the test split that hold ``n_questions`` together."""
    scenes, asked = [make_scene(first_seed, "test")], []
    while len(asked) < n_questions:
        scenes.append(make_scene(first_seed + len(scenes), "test"))
        here, following = scenes[-2:]
        asked += [Asked(q, here.image, following.image, len(scenes) - 2) for q in here.questions]
    return asked


def parse_policy(text: str) -> tuple[str, list[str], str | None]:
    """ "fastv:layer=3:positions=compact" -> ("fastv", ["layer=3"], "compact")."""
    name, *options = text.split(":")
    places = [option.partition("=")[2] for option in options if option.startswith("positions=")]
    return name, [o for o in options if not o.startswith("positions=")], places[-1] if places else None


@dataclass
class Twin:
    """Random tokens, as many at each site as another policy kept there; every sample must have the same number."""

    sites: tuple[float, ...]
    counts: tuple[int, ...]
    seed: int
    needs: frozenset[str] = frozenset()

    @staticmethod
    def of(report: Report, seed: int) -> Twin:
        """The twin of the policy that has just been asked."""
        records = [record for record in report.sites if record.after != record.before]
        return Twin(tuple(record.site for record in records), tuple(record.after[0] for record in records), seed)

    def select(self, tokens: VisualTokens) -> Selection:
        return Selection(top_rows(Random(seed=self.seed).score(tokens), self.counts[self.sites.index(tokens.site)]))


def runs_of(text: str, keep_ratio: float) -> list[object]:
    """The policies whose answers make one row: ``random`` with several seeds, the others once."""
    name, options, _ = parse_policy(text)
    seeds = SEEDS if name == "random" else (None,)
    return [make_policy(name, options, keep_ratio=str(keep_ratio), seed=seed) for seed in seeds]


def layer_share(report: Report) -> float:
    """Visual tokens that the layers process, of those in the prompt: the mean over layers and samples."""
    shares = [report.layer_mean(b) / before for b, (before, _) in enumerate(report.tokens)]
    return sum(shares) / len(shares)


def right(model, processor, asked: Sequence[Asked], condition: str = "picture") -> list[bool]:
    """Which questions are answered exactly."""
    said = answers(model, processor, [(show(one, condition), one.question.text) for one in asked])
    return [text == one.question.answer for text, one in zip(said, asked, strict=True)]


def rows_of(
    model, processor, asked: Sequence[Asked], policies: Sequence[str], ratios: Sequence[float]
) -> Iterator[dict]:
    """One row for each condition, the unpruned model and the blind ones first."""
    for condition in ("picture", *BLIND):
        hits = right(model, processor, asked, condition)
        name = "none" if condition == "picture" else condition
        yield {"policy": name, "keep_ratio": 1.0, "layer_share": 1.0 if name == "none" else 0.0, "right": hits}
    for keep_ratio in ratios:
        for text in policies:
            yield pruned_row(model, processor, asked, text, keep_ratio)


def pruned_row(model, processor, asked: Sequence[Asked], text: str, keep_ratio: float) -> dict:
    """One policy at one ratio; ``right`` holds the share of its runs that were right."""
    row: dict = {"policy": text, "keep_ratio": keep_ratio}
    try:
        policies, wanted = runs_of(text, keep_ratio), parse_policy(text)[2]
        hits, twins, positions = [], [], wanted or getattr(policies[0], "positions", "original")
        for policy in policies:
            with vtprune.pruned(model, policy, positions=wanted) as report:
                hits.append(right(model, processor, asked))
                row |= {"layer_share": layer_share(report), "kept": report.tokens[0][1], "of": report.tokens[0][0]}
                row |= {"flops_share": report.flops.total_causal / report.flops_unpruned.total_causal}
                row |= {"sites": [record.site for record in report.sites], "notes": report.notes}
                twins = [Twin.of(report, seed) for seed in TWIN_SEEDS]
    except ValueError as error:
        return row | {"error": str(error)}
    row |= {"runs": len(policies), "positions": positions, "right": mean_of(hits)}
    if (row["sites"] == [BEFORE_LLM] and positions == "original") or not twins[0].sites:
        return row
    hits = []
    for twin in twins:
        with vtprune.pruned(model, twin, positions=positions):
            hits.append(right(model, processor, asked))
    return row | {"twin_right": mean_of(hits)}


def mean_of(runs: Sequence[Sequence[float]]) -> list[float]:
    """Question by question."""
    return [sum(hits) / len(runs) for hits in zip(*runs, strict=True)]


def tell_progress(total: int) -> Callable[[dict], None]:
    """Writes to stderr what is done, and the time left."""
    start, done = datetime.now(timezone.utc), 0

    def tell(row: dict) -> None:
        nonlocal done
        done += 1
        left = (datetime.now(timezone.utc) - start).total_seconds() / done * (total - done)
        share = f"{100 * sum(row['right']) / len(row['right']):.1f} %" if "right" in row else row["error"]
        sys.stderr.write(f"[{done}/{total}, {left / 60:.0f} min left] {row['policy']} {row['keep_ratio']}: {share}\n")

    return tell


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1200, help="at least so many, of whole scenes")
    parser.add_argument("--policy", nargs="+", default=POLICIES, metavar="NAME[:OPTION=VALUE...]")
    parser.add_argument("--keep-ratio", nargs="+", type=float, default=KEEP_RATIOS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for table, rows, plot")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    asked = held_out(args.questions)
    model, processor = load_image()
    tell, rows = tell_progress(1 + len(BLIND) + len(args.policy) * len(args.keep_ratio)), []
    for row in rows_of(model, processor, asked, args.policy, args.keep_ratio):
        tell(row)
        rows.append(row)
    found = judged(rows, [one.scene for one in asked], [one.question.kind for one in asked])
    args.out.mkdir(parents=True, exist_ok=True)
    base = args.out / "quality-embedded-image"
    about = {"model": "embedded image", "questions": len(asked), "scenes": 1 + asked[-1].scene, "first": FIRST_SEED}
    base.with_suffix(".json").write_text(json.dumps({**conditions(), **about, "rows": found}, indent=1) + "\n")
    text = table(found, len(asked), 1 + asked[-1].scene)
    base.with_suffix(".txt").write_text(text)
    sys.stdout.write(text)
    try:
        from benchmarks.quality_plot import plot
    except ModuleNotFoundError as error:
        sys.stderr.write(f"no plot: {error}. pip install 'vtprune[bench]' brings it\n")
        return
    plot(found, base.with_suffix(".png"))


if __name__ == "__main__":
    main()
