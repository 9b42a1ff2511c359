"""A report before it is Markdown or HTML: headings, paragraphs, lists, tables and pictures, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tone = Literal["", "good", "bad", "quiet", "strong"]


@dataclass(frozen=True)
class Cell:
    """What stands in a table. tone: "good" and "bad" are results that can be told from nothing."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Heading:
    """level: 1 of the report, 2 of a task, 3 below."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """A command."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """rows: as many cells as columns. left: columns of words; the others are of numbers. parts: (index of a row, words)
    of lines that stand above that row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: Sequence[str] = ()
    parts: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Picture:
    """A plot, and in words what it shows."""

    file: str
    words: str


@dataclass(frozen=True)
class Folded:
    """What is there for those who want to know."""

    title: str
    blocks: Sequence[Heading | Text | Code | Bullets | Table | Picture]


Block = Heading | Text | Code | Bullets | Table | Picture | Folded


def per_cent(share: float | None, digits: int = 1) -> str:
    """A share of one: 0.7715 is "77.2"."""
    return "" if share is None else minus(f"{100 * share:.{digits}f}")


def signed(difference: float) -> str:
    """A difference of shares in points: "+1.2"."""
    return minus(f"{100 * difference:+.1f}")


def between(interval: Sequence[float] | None, sign: bool = False) -> str:
    """An interval of shares: " (71.0 to 83.1)"."""
    if interval is None:
        return ""
    low, high = (signed(end) if sign else per_cent(end) for end in interval)
    return f" ({low} to {high})"


def p_value(p: float) -> str:
    """ "0.031", or "<0.001"."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def minus(text: str) -> str:
    """A number with the minus sign that is as wide as a plus; nothing has no sign."""
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "\N{MINUS SIGN}")
