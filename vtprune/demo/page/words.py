"""What the page says in HTML: lines, progress, tables; whatever came from a user or a model is escaped."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr

from vtprune.cli.error import one_line

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

STOPPED = "Stopped."

LONG = 24
"""Letters of an answer from which on it is a sentence."""


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


def explained(steps: Iterator[list[Any]], n: int, place: int) -> Iterator[list[Any]]:
    """Steps of long work, each with values for ``n`` components; a mistake is told at ``place`` too, where it stays."""
    with told():
        try:
            yield from steps
        except MISTAKES as error:
            yield [line(one_line(error), stale=True) if i == place else gr.skip() for i in range(n)]
            raise


def html(value: str = "", **more: Any) -> gr.HTML:
    """A place for HTML in the page's own style."""
    return gr.HTML(value, apply_default_css=False, elem_classes="vt", **more)


def line(text: str, *, stale: bool = False) -> str:
    """A paragraph that is read out when it changes."""
    return f'<p class="vt-line{" stale" if stale else ""}" role="status">{escape(text)}</p>'


def progress(share: float, what: str, said: str = "") -> str:
    """A bar that is filled by the share that is done, 0 to 1, below what is being done, or what is known already."""
    percent = round(100 * min(max(share, 0.0), 1.0))
    return (
        f'<p class="vt-line" role="status">{escape(said or what + " …")}</p>'
        f'<div class="vt-meter busy" role="progressbar" aria-valuenow="{percent}" aria-label="{escape(what)}">'
        f'<i style="width:{percent}%"></i></div>'
    )


def heading(text: str) -> str:
    """The title of a drawing or a table."""
    return f'<h3 class="vt-heading">{escape(text)}</h3>'


def empty(text: str) -> str:
    """What stands where nothing is yet."""
    return f'<p class="vt-empty">{escape(text)}</p>'


def note(text: str) -> str:
    """Small print."""
    return f'<p class="vt-note">{escape(text)}</p>' if text else ""


def milliseconds(value: float | None) -> str:
    """Three digits; "-" for None."""
    return "-" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: int | None) -> str:
    """With commas; "-" for None."""
    return "-" if value is None else f"{value:,}"


def times(value: float | None) -> str:
    """A ratio as "× 0.64"; "" for None."""
    return "" if value is None else f"× {value:.2f}"


def answer(said: str, right: str | None) -> str:
    """An answer as a paragraph, whole sentences in smaller letters, with the verdict."""
    long = " long" if len(said) > LONG else ""
    return f'<p class="vt-said{long}">{escape(said or "(nothing)")} {verdict(said, right)}</p>'


def verdict(said: str, right: str | None) -> str:
    """Whether an answer is right, by a sign and a word; "" where nobody knows, as of a sentence that has the word."""
    heard = re.findall(r"\w+", said.lower())
    if right is None or (right.lower() in heard and len(heard) > 1):
        return ""
    good = heard == [right.lower()]
    return '<small class="vt-right">✓ right</small>' if good else '<small class="vt-wrong">✗ wrong</small>'


def meter(share: float, what: str) -> str:
    """A bar filled by a share, 0 to 1, with words for those who do not see it."""
    percent = f"{100 * share:.1f}"
    return (
        f'<div class="vt-meter" role="img" aria-label="{escape(what)}: {percent} %">'
        f'<i style="width:{percent}%"></i></div>'
    )


def scale(low: float, high: float, what: str) -> str:
    """The colours of a heat map, with their ends."""
    ends = [f"{value:.2g}" for value in (low, high)]
    if low >= 0 and low < 0.005 * high:
        ends[0] = "0"
    spoken = f"{escape(what)} from {ends[0]}, dark blue, to {ends[1]}, yellow"
    return (
        f'<div class="vt-scale" role="img" aria-label="{spoken}">'
        f"<span>{ends[0]}</span><i></i><span>{ends[1]}</span></div>{note(what)}"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table that scrolls sideways where the page is narrow; the first column names the rows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="vt-scroll" tabindex="0" role="region" aria-label="{escape(caption or columns[0] or "numbers")}">'
        f'<table class="vt-nums">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
