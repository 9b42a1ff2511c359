"""Accuracy and paired differences of a quality run: intervals by scene, and a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vtprune.tokens import BEFORE_LLM

Z = 1.96
"""Standard deviations of a 95 % interval."""


def mean_interval(values: Sequence[float], clusters: Sequence[int]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval) when values of one cluster are not independent.

    The variance of a mean of clusters of unequal size: the sum of squares of what each cluster adds beyond the mean.
    """
    n, mean = len(values), sum(values) / len(values)
    beyond: dict[int, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        beyond[cluster] = beyond.get(cluster, 0.0) + value - mean
    many = len(beyond)
    if many < 2:
        return mean, math.nan
    variance = sum(b * b for b in beyond.values()) / n**2 * many / (many - 1)
    return mean, Z * math.sqrt(variance)


def judged(rows: Sequence[dict], scenes: Sequence[int], kinds: Sequence[str]) -> list[dict]:
    """The rows with accuracy, its interval, that of each kind of question, and the difference from random tokens.

    Random tokens are the row's own twin, or for policies that act only before the LLM, on tokens that keep their place,
    the ``random`` row of the same ratio. ``right`` and ``twin_right`` are taken out: they are only needed for this.
    """
    chance = {row["keep_ratio"]: row["right"] for row in rows if row["policy"] == "random" and "right" in row}
    found = []
    for row in rows:
        out = {name: value for name, value in row.items() if not name.endswith("right")}
        if "right" in row:
            hits = row["right"]
            accuracy, half = mean_interval(hits, scenes)
            by_kind = {
                kind: _mean([hit for hit, one in zip(hits, kinds, strict=True) if one == kind])
                for kind in sorted(set(kinds))
            }
            out |= {"accuracy": accuracy, "interval": half, "kinds": by_kind}
            plain = row.get("sites") == [BEFORE_LLM] and row["positions"] == "original"
            twin = row.get("twin_right", chance.get(row["keep_ratio"]) if plain else None)
            if twin is not None and row["policy"] != "random":
                difference, half = mean_interval([a - b for a, b in zip(hits, twin, strict=True)], scenes)
                out |= {"random": _mean(twin), "over_random": difference, "over_random_interval": half}
        found.append(out)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def verdict(row: dict) -> str:
    """Whether a policy beat random at the same ratio, lost to it, or cannot be told from it."""
    if "over_random" not in row:
        return ""
    difference, half = row["over_random"], row["over_random_interval"]
    word = "better" if difference > half else "worse" if difference < -half else "not told apart"
    return f"{100 * difference:+.1f} ± {100 * half:.1f}, {word}"


def idles(row: dict) -> bool:
    """Whether a policy was asked to prune and did not."""
    return "sites" in row and row["keep_ratio"] < 1 and row["kept"] == row["of"]


def table(rows: Sequence[dict], questions: int, scenes: int) -> str:
    """A table in Markdown, best first at every ratio."""
    lines = [
        f"Accuracy in per cent on {questions:,} held-out questions about {scenes} scenes, embedded image model;",
        "intervals of 95 %, by scene. `layers` is the share of visual tokens that the layers process, the mean over",
        "all of them; `FLOPs` is the share of the unpruned decoder's prefill. `random` is the mean of three seeds. A",
        "policy that acts inside the LLM, or renumbers positions, is compared with random tokens that do the same:",
        "as many at each site, two seeds.",
        "",
        "| kept | policy | layers | FLOPs | accuracy | over random |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (-row["keep_ratio"], -row.get("accuracy", -1.0))):
        kept = "" if "sites" not in row and "error" not in row else f"{100 * row['keep_ratio']:g} %"
        if "error" in row:
            lines.append(f"| {kept} | `{row['policy']}` | | | refused: {row['error']} | |")
            continue
        share = f"{100 * row['layer_share']:.0f} %" if "sites" in row else ""
        flops = f"{100 * row['flops_share']:.0f} %" if "flops_share" in row else ""
        accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['interval']:.1f}"
        idle = " (nothing was pruned, see `notes`)" if idles(row) else ""
        lines.append(f"| {kept} | `{row['policy']}` | {share} | {flops} | {accuracy}{idle} | {verdict(row)} |")
    return "\n".join(lines) + "\n"
