"""What a report says, task by task: conclusions, plots, tables, and examples of what pruning lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vtprune.bench.conclusions import conclusions
from vtprune.bench.document import Block, Bullets, Code, Folded, Heading, Picture, Text
from vtprune.bench.examples import lost_by_row, most_lost
from vtprune.bench.plots import Plot
from vtprune.bench.result_tables import (
    behaviour_table,
    break_even_table,
    label_table,
    metric_table,
    score_table,
    time_table,
    use_table,
)
from vtprune.bench.sheet import Sheet

HOW = (
    "n: questions. layers see: visual tokens that a decoder layer sees, mean over layers, as a share of the full "
    "model's; a policy that prunes inside the decoder pays for more of them than one that prunes before it, at the "
    "same ratio. In brackets: intervals of 95 %. They come from resampling whole clusters, the pictures or videos that "
    "questions are about, 2,000 times; where every question has a cluster of its own, Wilson's.",
    "to full, to random: the difference in points on the same questions; coloured where its interval leaves out zero. "
    "Random is the row of random tokens at the same ratio (of those with the same positions the one whose layers see "
    "most nearly as many), the mean of its seeds. Nothing is corrected for the number of rows that are compared.",
    "lost / won: questions that were right with every token and are wrong now, and the reverse; of several seeds, what "
    "most of them got. p: McNemar's test of these counts, exact up to 1,000 of them. It takes questions to be "
    "independent; where several are about one picture, trust the interval.",
    "retained: (row - blind) / (full - blind), the share of what seeing is worth. where seeing is needed: the score on "
    "questions that the full model gets right, and that are wrong without a picture and, where it was run, with a "
    "downsampled one of as many tokens.",
    "best?: the best score at the ratio, and rows whose difference from it may be zero. Answers that cannot be read "
    "and questions that failed count as wrong. A row is refused unless fewer tokens were kept, the KV cache is as "
    "small as they promise, and the first token's logits are other than the full model's.",
)


def page(summary: Mapping[str, Any], sheets: Mapping[str, Sheet], plots: Mapping[str, list[Plot]]) -> list[Block]:
    """The blocks of a report. plots: by task."""
    model = summary["model"]
    blocks: list[Block] = [Heading(1, f"What pruning costs {model['name']}"), *_about(summary)]
    blocks += [Bullets(summary["notes"])] if summary["notes"] else []
    for name, task in summary["tasks"].items():
        blocks += _task(name, task, sheets[name], plots.get(name, []))
    return [*blocks, Heading(2, "How to read this"), Bullets(HOW)]


def _about(summary: Mapping[str, Any]) -> Iterator[Block]:
    model, run = summary["model"], summary["run"]
    parameters = f"{model['parameters']:,} parameters" if model.get("parameters") else ""
    facts = [model.get("model_type"), parameters, model.get("dtype"), model.get("device")]
    facts += [f"{model['attention']} attention" if model.get("attention") else ""]
    yield Text(f"Model: {', '.join(str(fact) for fact in facts if fact)}.")
    code = run.get("code", {})
    words = [f"vtprune {code.get('version')}" if code.get("version") else ""]
    words += [f"commit {code['commit'][:12]}" if code.get("commit") else "", run.get("started", "")]
    words += [f"{name} {version}" for name, version in run.get("versions", {}).items() if name != "vtprune"]
    yield Text(f"Run: {', '.join(word for word in words if word)}.")
    if run.get("command"):
        yield Code(run["command"])


def _task(name: str, task: Mapping[str, Any], sheet: Sheet, plots: list[Plot]) -> Iterator[Block]:
    yield Heading(2, name)
    source = f"{task['source']}. " if task.get("source") else ""
    what = f"{task['questions']:,} questions about {task['clusters']:,} pictures or videos"
    revision = f", revision {task['revision']}" if task.get("revision") else ""
    yield Text(f"{source}{what}{revision}.")
    yield Bullets(conclusions(task))
    for plot in plots:
        if plot.label is None:
            yield Picture(plot.file, plot.words)
    yield Heading(3, "Scores")
    yield score_table(task)
    figures = metric_table(task)
    if figures is not None:
        yield Heading(3, "Published figures")
        yield figures
    for label in _labels(task):
        yield Heading(3, f"By {label}")
        yield from (Picture(plot.file, plot.words) for plot in plots if plot.label == label)
        yield Folded(f"Scores by {label}, with intervals", [label_table(task, label)])
    yield Heading(3, "What was used, and how it behaved")
    yield Folded("Visual tokens, seconds of one sample, and what shows that a row pruned", [use_table(task)])
    yield Folded("Answers that cannot be read, failures, re-checks", [behaviour_table(task)])
    if task["times"]:
        yield Heading(3, "Times")
        yield Text(
            "Median milliseconds of a batch, ninetieth percentile in brackets. The first token needs vision, selecting "
            "and prefill. Of rows with several seeds, the first. GFLOPs: exact, all of it, selecting included."
        )
        yield from _times(task["times"])
    yield from _examples(task, sheet)


def _times(times: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """A table for each batch size, and how many tokens it takes until pruning pays, if that was measured."""
    once = [row for row in times if "copies" not in row]
    for batch in sorted({row["batch"] for row in once}):
        yield Folded(f"Batch of {batch}", [time_table([row for row in once if row["batch"] == batch])])
    more = break_even_table([row for row in times if "copies" in row])
    if more is not None:
        yield Folded("How many visual tokens it takes until the first token comes sooner than without pruning", [more])


def _labels(task: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(label for row in task["rows"].values() for label in row.get("labels", {})))


def _examples(task: Mapping[str, Any], sheet: Sheet) -> Iterator[Block]:
    ratios = [float(ratio) for ratio in task["ratios"]]
    if not ratios:
        return
    # the one that is nearest to a quarter: few tokens, but not hopelessly few
    ratio = min(ratios, key=lambda one: abs(one - 0.25))
    most, each = most_lost(sheet, task, ratio), lost_by_row(sheet, task, ratio)
    if most is None and each is None:
        return
    yield Heading(3, f"What was lost at {100 * ratio:g} % kept")
    if most is not None:
        yield Folded("Questions that most policies lost", [most])
    if each is not None:
        yield Folded("Questions that each policy lost", [each])
