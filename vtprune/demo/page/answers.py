"""Both answers as HTML: side by side, how far they agree, and what they cost; and what else a budget could buy."""

from collections.abc import Mapping
from html import escape
from textwrap import shorten
from typing import Any

from vtprune.cli.result import engineering
from vtprune.demo.page.words import answer, count, meter, milliseconds, note, table, times

WAITING = "…"
SHOWN = 40
"""Letters of an answer in a table, which has no room for sentences."""

AGREEMENT = "Agreement: 1 − total variation distance of the two distributions of the first answer token."
TOY = "This model is a toy: compare bytes and FLOPs rather than its times."


def answers(values: Mapping[str, Any], *, busy: bool = False) -> str:
    """Both answers with what they cost, and how far the next-token distributions agree.

    busy: what is None is still being worked on.
    """
    plain, pruned, right = values["unpruned"], values["pruned"], values["right_answer"]
    policy = values["policy"]["name"]
    whole = None if plain is None else plain["answer"]
    cards = _card("whole", f"With all {pruned['visual_tokens_before']:,} visual tokens", whole, right)
    cards += _card("less", f"With {pruned['visual_tokens']:,} kept by {policy}", pruned["answer"], right)
    return f'<div class="vt-cards">{cards}{_agreement(values)}</div>' + _costs(values, busy) + notes(values)


def _card(kind: str, title: str, said: str | None, right: str | None) -> str:
    text = f'<p class="vt-said">{WAITING}</p>' if said is None else answer(said, right)
    return f'<section class="vt-card {kind}"><h4>{escape(title)}</h4>{text}</section>'


def _agreement(values: Mapping[str, Any]) -> str:
    comparison = values["comparison"]
    agree = None if comparison is None else comparison["agreement"]
    if agree is None:
        text, bar = (WAITING if comparison is None else "unknown"), ""
    else:
        text, bar = f"{100 * agree:.1f} %", meter(agree, "agreement")
    return f'<section class="vt-card agree"><h4>Agreement</h4><p class="vt-share">{text}</p>{bar}</section>'


def _costs(values: Mapping[str, Any], busy: bool) -> str:
    pruned, plain, ratios = values["pruned"], values["unpruned"] or {}, values["comparison"] or {}
    before, after = pruned["visual_tokens_before"], pruned["visual_tokens"]
    flops, whole = pruned["flops"], pruned["flops_unpruned"]
    rows = [("visual tokens", count(before), count(after), times(after / before if before else None))]
    for name, key, ratio, shown in (
        ("prefill, ms", "prefill_ms", "prefill_ratio", milliseconds),
        ("each later token, ms", "token_ms", "token_ratio", milliseconds),
        ("KV cache, bytes", "kv_bytes", "kv_ratio", count),
    ):
        cells = [WAITING if busy and side.get(key) is None else shown(side.get(key)) for side in (plain, pruned)]
        rows.append((name, *cells, times(ratios.get(ratio))))
    share = None if not whole or flops is None else flops / whole
    rows.append(("prefill FLOPs, decoder", engineering(whole), engineering(flops), times(share)))
    return table(("what it costs", "all", values["policy"]["name"], ""), rows) + note(_about(values))


def _about(values: Mapping[str, Any]) -> str:
    runs = f" Times are medians of {values['runs']} runs." if values["runs"] else ""
    return AGREEMENT + runs + (f" {TOY}" if values["model"].startswith("embedded") else "")


def notes(values: Mapping[str, Any]) -> str:
    """Notes of the policy and of what was read, each once."""
    said = dict.fromkeys([*values.get("notes", ()), *values["pruned"]["notes"]])
    return "".join(note(f"Note: {text}") for text in said)


def same_budget(found: Mapping[str, Any] | None) -> str:
    """As many visual tokens spent on fewer frames or on more."""
    if not found:
        return ""
    rows = [
        (
            f"{'★ ' if row['same_budget'] else ''}{row['name']}",
            f"{row['frames']:,}",
            f"{row['visual_tokens_before']:,} → {row['visual_tokens']:,}",
            shorten(row["answer"], SHOWN, placeholder=" …") or "(nothing)",
            milliseconds(row["prefill_ms"]),
        )
        for row in found["rows"]
    ]
    spent = f"★ spends {found['budget']:,} visual tokens in the decoder ({found['counted']}). {found['note']}"
    return table(("how it is spent", "frames", "visual tokens", "answer", "prefill, ms"), rows) + note(spent)
