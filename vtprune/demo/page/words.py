"""What the page says in HTML: answers, numbers, tables; whatever came from a user or a model is escaped."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr

from vtprune.cli.error import one_line
from vtprune.cli.result import engineering

PROGRESS = gr.Progress()
"""The default of a callback's argument, by which gradio knows that it reports progress; each event gets its own."""

MISTAKES = (
    ValueError,
    TypeError,
    NotImplementedError,
    ImportError,
    OSError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)
"""What is told in the page as the command line tells it."""


@contextmanager
def told() -> Iterator[None]:
    """Mistakes become a message in the page, in one line, without a trace in the server's log."""
    try:
        yield
    except gr.Error:
        raise
    except MISTAKES as error:
        # the message is shown as HTML; quotes are harmless there
        raise gr.Error(escape(one_line(error), quote=False), duration=20, print_exception=False) from error


def line(text: str, *, stale: bool = False) -> str:
    """A paragraph."""
    return f'<p class="vt-line{" stale" if stale else ""}" role="status">{escape(text)}</p>'


def empty(text: str) -> str:
    """What stands where nothing is yet."""
    return f'<p class="vt-empty">{escape(text)}</p>'


def answers(values: Mapping[str, Any]) -> str:
    """Both answers side by side with what they cost, and how far the next-token distributions agree."""
    plain, pruned, right = values["unpruned"], values["pruned"], values["right_answer"]
    before, after = pruned["visual_tokens_before"], pruned["visual_tokens"]
    comparison = values["comparison"]
    policy = values["policy"]["name"]
    whole = _card("whole", "All visual tokens", plain["answer"], right, before, plain, pruned["flops_unpruned"])
    less = _card("less", f"Pruned by {policy}", pruned["answer"], right, after, pruned, pruned["flops"])
    return f'<div class="vt-cards">{whole}{less}</div>' + _agreement(comparison, values["runs"]) + notes(values)


def _card(kind: str, title: str, said: str, right: str | None, tokens: int, costs: Mapping, flops: Any) -> str:
    verdict = "" if right is None else (" <small>✓ right</small>" if said == right else " <small>✗ wrong</small>")
    rows = (
        ("visual tokens", f"{tokens:,}"),
        ("prefill, ms", milliseconds(costs["prefill_ms"])),
        ("each later token, ms", milliseconds(costs["token_ms"])),
        ("KV cache, bytes", "-" if costs["kv_bytes"] is None else f"{costs['kv_bytes']:,}"),
        ("prefill FLOPs, decoder", engineering(flops)),
    )
    cells = "".join(f"<tr><td>{escape(name)}</td><td><b>{escape(value)}</b></td></tr>" for name, value in rows)
    return (
        f'<section class="vt-card {kind}"><h3>{escape(title)}</h3><p class="vt-said">{escape(said or "(nothing)")}'
        f'{verdict}</p><table class="vt-nums">{cells}</table></section>'
    )


def _agreement(comparison: Mapping[str, Any], runs: int) -> str:
    agree = comparison["agreement"]
    if agree is None:
        return ""
    ratios = [
        f"{name} × {comparison[key]:.2f}"
        for name, key in (("prefill time", "prefill_ratio"), ("KV cache", "kv_ratio"))
        if comparison[key] is not None
    ]
    timed = f" Times are medians of {runs} runs." if runs else ""
    percent = f"{100 * agree:.1f} %"
    return (
        f'<div class="vt-agree">The distributions of the first answer token agree to <b>{percent}</b> '
        f'(1 − total variation distance).<div class="vt-meter" role="img" aria-label="agreement {percent}">'
        f'<i style="width:{100 * agree:.1f}%"></i></div>{escape(", ".join(ratios))}.{timed}</div>'
    )


def notes(values: Mapping[str, Any]) -> str:
    """Notes of the policy and of what was read, each once."""
    said = dict.fromkeys([*values.get("notes", ()), *values["pruned"]["notes"]])
    return "".join(f'<p class="vt-note">Note: {escape(text)}</p>' for text in said)


def milliseconds(value: float | None) -> str:
    """Three digits; "-" for None."""
    return "-" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def scale(low: float, high: float, what: str) -> str:
    """The colours of a heat map, with their ends."""
    spoken = f"{escape(what)} from {low:.3g}, dark blue, to {high:.3g}, yellow"
    return (
        f'<div class="vt-scale" role="img" aria-label="{spoken}">'
        f"<span>{low:.3g}</span><i></i><span>{high:.3g}</span></div>"
        f'<p class="vt-note">{escape(what)}; dark blue is low, yellow is high.</p>'
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table that scrolls sideways where the page is narrow."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption class='vt-note'>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="vt-scroll"><table class="vt-nums">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def same_budget(found: Mapping[str, Any] | None) -> str:
    """As many visual tokens spent on fewer frames or on more."""
    if not found:
        return ""
    rows = [
        (
            f"{'★ ' if row['same_budget'] else ''}{row['name']}",
            f"{row['frames']:,}",
            f"{row['visual_tokens_before']:,} → {row['visual_tokens']:,}",
            row["answer"] or "(nothing)",
            milliseconds(row["prefill_ms"]),
        )
        for row in found["rows"]
    ]
    spent = f"★ spends {found['budget']:,} visual tokens in the decoder ({found['counted']}). {found['note']}"
    return table(("same budget", "frames", "visual tokens", "answer", "prefill, ms"), rows) + (
        f'<p class="vt-note">{escape(spent)}</p>'
    )
