"""The rows of the decoding benchmark as tables in Markdown, and in sentences what beats what.

``python -m benchmarks.decode_table FILE.json ...`` writes the tables of kept results anew, each beside its file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.decode_conditions import NONE
from benchmarks.video_table import Column, by_columns

TURNS = {
    "alone": "asked of the {0} after it was read alone, with nothing to go by",
    "other": "asked of the {0} after it was read with another question, which was answered",
    "first": "asked in the prompt with the {0}: nothing can change the first word of an answer but a pruned prompt",
}
VISUALS = {"image": "picture", "video": "clip"}
Rows = Sequence[Mapping]


def text_of(result: Mapping) -> str:
    """All tables of a result."""
    rows = result["rows"]
    makers = {"speed": speed_text, "memory": memory_text}
    made = makers.get(result["experiment"], answers_text)(result, rows)
    return f"{made}\n{result['device']}, {result['threads']} threads, {result['date']}, {result['commit']}\n"


# ------------------------------------------------------------------------------------------------------- answers


def answers_text(result: Mapping, rows: Rows) -> str:
    """A table for each model and turn, and what it comes to."""
    parts = []
    for model, turn in dict.fromkeys((row["model"], row["turn"]) for row in rows):
        some = [row for row in rows if (row["model"], row["turn"]) == (model, turn)]
        whole = some[0]
        title = f"Embedded {model} model: {TURNS[turn].format(VISUALS[model])}"
        counted = f"{whole['questions']} questions about {whole['subjects']} {VISUALS[model]}s"
        counted += f"; unpruned answers have {whole['tokens']:.2f} tokens on average, the end included"
        lines = "".join(f"* {line}\n" for line in in_words(some))
        parts.append(f"## {title}\n\n{counted}.\n\n{lines}\n{by_columns(in_order(some), ANSWERS)}")
    return f"# Answers from a cache that was cut down\n\n{ANSWERS_NOTE}\n\n" + "\n".join(parts)


ANSWERS_NOTE = (
    "`prefill` rows are pruned prompts that leave as many bytes of keys and values as the `cache` rows beside them. "
    "Right\nanswers in per cent, differences in points, paired by question, with intervals of 95 % whose units are "
    "pictures or clips.\n`same`: answers that are word for word those of the unpruned model. `KL`: of next-token "
    "distributions from the unpruned\nones, along the unpruned answer, in nats. No correction is made for looking at "
    "many rows."
)


def in_order(rows: Rows) -> list[Mapping]:
    """Unpruned first, then by ratio, the best first."""
    return sorted(rows, key=lambda r: (r["policy"] != NONE, -r["keep_ratio"], -r.get("accuracy", -1)))


def percent(value: float, interval: Sequence[float] | None, sign: str = "") -> str:
    """ "81.2 (78.0 to 84.4)" """
    bounds = f" ({100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f})" if interval else ""
    return f"{100 * value:{sign}.1f}{bounds}"


def difference(pair: Mapping | None) -> str:
    """A paired difference in points, and whether it can be told from none."""
    return f"{percent(pair['difference'], pair['interval'], '+')}, {pair['verdict']}" if pair else ""


def _kl(row: Mapping) -> str:
    low, high = row["kl_interval"] or (row["kl"], row["kl"])
    return f"{row['kl']:.4f} ({low:.4f} to {high:.4f})"


def unless_skipped(cell: Callable[[Mapping], str]) -> Callable[[Mapping], str]:
    return lambda row: "" if "skipped" in row else cell(row)


def kept(row: Mapping) -> str:
    return "" if row["policy"] == NONE else f"{100 * row['keep_ratio']:.3g} %"


WHO: list[Column] = [
    ("kept", kept),
    ("policy", lambda row: f"`{row['policy']}`"),
    ("acts on", lambda row: "" if row["policy"] == NONE else row["kind"]),
]
ANSWERS: list[Column] = [
    *WHO,
    ("KV bytes, %", unless_skipped(lambda row: f"{100 * row['kv_share']:.1f}")),
    ("right", lambda row: row.get("skipped") or percent(row["accuracy"], row["accuracy_interval"])),
    ("over unpruned", lambda row: difference(row.get("over_unpruned"))),
    ("over `cache_random`", lambda row: difference(row.get("over", {}).get("cache_random"))),
    ("over `uniform` prompt", lambda row: difference(row.get("over", {}).get("uniform"))),
    ("same", unless_skipped(lambda row: percent(row["same"], row["same_interval"]))),
    ("KL", unless_skipped(_kl)),
]


def in_words(rows: Rows) -> list[str]:
    """For each ratio the best policy of the cache against the best pruned prompt, and which others that one beats.

    Both bests are those of the same answers, so each looks better than it is.
    """
    lines = []
    for ratio in dict.fromkeys(row["keep_ratio"] for row in rows if row["policy"] != NONE):
        here = [row for row in rows if row["keep_ratio"] == ratio and "accuracy" in row and row["policy"] != NONE]
        kinds = [[row for row in here if row["kind"] == kind] for kind in ("cache", "prefill")]
        if not all(kinds):
            continue
        cache, prefill = (max(some, key=lambda row: row["accuracy"]) for some in kinds)
        pair = cache["over"][prefill["policy"]]
        words = {"better": "better than", "worse": "worse than"}.get(pair["verdict"], "not told apart from")
        worse = [row["policy"] for row in kinds[0] if row["over"][prefill["policy"]]["verdict"] == "worse"]
        lines.append(
            f"{100 * ratio:g} % kept: the best policy of the cache, `{cache['policy']}` "
            f"({percent(cache['accuracy'], None)}), is {words} the best pruned prompt, `{prefill['policy']}` "
            f"({percent(prefill['accuracy'], None)}), by {percent(pair['difference'], pair['interval'], '+')}; "
            f"{len(worse)} of {len(kinds[0])} policies of the cache are worse than it"
        )
    return lines


# ---------------------------------------------------------------------------------------------- times and memory


def _ms(row: Mapping) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*(1000 * row[f"seconds{part}"] for part in ("", "_min", "_max")))


def _faster(row: Mapping) -> str:
    if "speedup" not in row:
        return ""
    return f"{row['speedup']:.2f} ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"


FIRST: list[Column] = [
    *WHO,
    ("KV bytes", lambda row: row.get("skipped") or f"{row['kv_bytes']:,d}"),
    ("of unpruned, %", unless_skipped(lambda row: f"{100 * row['kv_share']:.1f}")),
    ("first token, ms", unless_skipped(_ms)),
    ("times as fast", _faster),
]


def _steps(rows: Rows) -> tuple[list[dict], list[Column]]:
    """Rows of steps, those of one condition as one, and their columns."""
    found: dict[tuple, dict] = {}
    for row in rows:
        one = found.setdefault((row["beside"], row["policy"], row["keep_ratio"]), {**row, "at": {}})
        one["at"][row["generated"]] = row
    columns = list(WHO)
    for n in dict.fromkeys(row["generated"] for row in rows):
        columns += [
            (f"ms at {n}", lambda row, n=n: f"{1000 * row['at'][n]['seconds']:.2f}"),
            ("times as fast", lambda row, n=n: _faster(row["at"][n])),
            ("bytes allow", lambda row, n=n: f"{row['at'][n]['limit']:.2f}" if row["policy"] != NONE else ""),
        ]
    return list(found.values()), columns


def speed_text(result: Mapping, rows: Rows) -> str:
    """Two tables for each batch: reading the prompt, and decoding."""
    parts = [f"# Times while decoding\n\n{_shape(result)}\n\n{SPEED_NOTE}\n"]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        some = [row for row in rows if row["batch"] == batch]
        first = [row for row in some if row["what"] == "first token"]
        steps, columns = _steps([row for row in some if row["what"] == "decode step"])
        parts.append(f"## Batch of {batch}\n\n### The first token\n\n{by_columns(first, FIRST)}")
        parts.append(f"### A decode step, when so many tokens have been generated\n\n{by_columns(steps, columns)}")
    return "\n".join(parts)


SPEED_NOTE = (
    "Each policy was timed in turns with the unpruned model, whose times stand above it: compare within such a group "
    "only.\n`times as fast`: the median of unpruned over own, round by round, with its interval (of fewer than 6 "
    "rounds the extremes).\n`first token`: reading the prompt with all that the policy does then, up to the first "
    "token; the encoder is not in it.\n`bytes allow`: how many times as fast a step were if nothing but reading "
    "weights, keys and values once took time. It is no\nbound of what is gained here: the cache copies all keys and "
    "values in every step besides. Tokens in between the lengths\nwere read at once, and the steps at each length were "
    "made one by one."
)


def memory_text(result: Mapping, rows: Rows) -> str:
    """A table for each batch."""

    def mib(value: int | None) -> str:
        return "" if value is None else f"{value / 2**20:.1f}"

    columns = [
        *WHO,
        ("KV bytes", lambda row: row.get("skipped") or f"{row['kv_bytes']:,d}"),
        ("peak until the first token, MiB", lambda row: mib(row.get("first_token_bytes"))),
    ]
    for n in result["generated"]:
        columns.append((f"peak of steps at {n}, MiB", lambda row, n=n: mib(row.get("decode_bytes", {}).get(str(n)))))
    parts = [f"# Memory while decoding\n\n{_shape(result)} Peaks are above the loaded model.\n"]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        parts.append(f"## Batch of {batch}\n\n{by_columns([row for row in rows if row['batch'] == batch], columns)}")
    return "\n".join(parts)


def _shape(result: Mapping) -> str:
    sizes = "{layers} layers of width {hidden}, {heads} heads, {kv_heads} of them of keys, {dtype}".format(**result)
    visual = 576 * result["images"]
    return f"A LLaVA with random weights: {sizes}; {visual:,} visual tokens and {result['text']} of text in a prompt."


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.with_suffix(".md").write_text(text_of(json.loads(path.read_text())))
