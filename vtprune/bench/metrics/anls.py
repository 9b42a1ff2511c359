"""ANLS, the average normalized Levenshtein similarity: reading errors cost a little, other words everything.

Biten et al., Scene Text Visual Question Answering, ICCV 2019 (arXiv:1905.13648); the score of DocVQA.
"""

from __future__ import annotations

from collections.abc import Sequence


def anls(raw: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """The best similarity to one of the answers, 0 where it is below ``threshold``.

    The similarity is 1 - edits / length of the longer text, in lower case and with single spaces. One of exactly the
    threshold counts, as in the challenge's evaluation (the paper's formula says it does not).
    Raises ValueError without answers.
    """
    if not answers:
        raise ValueError("ANLS compares with one or more right answers; got none")
    said = _plain(raw)
    best = max(_similarity(said, _plain(answer)) for answer in answers)
    return best if best >= threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str) -> float:
    longer = max(len(one), len(other))
    return 1 - edits(one, other) / longer if longer else 1.0


def edits(one: str, other: str) -> int:
    """How many letters must be put in, taken out or replaced to make one text the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]
