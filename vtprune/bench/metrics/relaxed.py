"""Relaxed accuracy: a number may be 5 % off, anything else must be the same.

Masry et al., ChartQA, Findings of ACL 2022 (arXiv:2203.10244), section 5.1, after Methani et al., PlotQA, WACV 2020.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?%?", re.ASCII)
_ROUNDING = 1e-9  # 1.05 is within 5 % of 1, in binary too


def relaxed(raw: str, answer: str, tolerance: float = 0.05) -> float:
    """1 if the answer is right, else 0.

    A number is right within ``tolerance`` of the answer, as a fraction of it; "5%" is the number 0.05, as in the usual
    evaluations. Commas and units make a number a text, which must be the same but for upper case, spaces around it and
    a full stop.
    """
    said, right = _plain(raw), _plain(answer)
    number, value = _value(said), _value(right)
    if number is None or value is None:
        return float(said == right)
    return float(abs(number - value) <= tolerance * abs(value) * (1 + _ROUNDING))


def _plain(text: str) -> str:
    text = text.strip().lower()
    return text[:-1].rstrip() if text.endswith(".") else text


def _value(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):
        return None
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)
