"""Open answers: exact match, and soft match for a right answer inside a sentence."""

from __future__ import annotations

import re
import unicodedata

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
NUMBERS = {word: str(i) for i, word in enumerate([*_UNITS.split(), "seventeen", "eighteen", "nineteen", "twenty"])}
ARTICLES = frozenset(("a", "an", "the"))
IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
}

_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# a point or colon inside a number and the sign of one are part of it
_SEPARATOR = re.compile(r"(?!(?<=\d)[.:](?=\d))(?!(?<!\S)[-−](?=\d))[\W_]")


def normalized(text: str) -> str:
    """Lower case, number words up to twenty as digits, without articles and punctuation, single spaces.

    "The Two dogs' red-ish balls, 1,000.5 kg!" -> "2 dogs red ish balls 1000.5 kg". A text of nothing but articles or
    symbols keeps them.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    words = _SEPARATOR.sub(" ", _THOUSANDS.sub("", _APOSTROPHE.sub("", plain))).replace("−", "-").split()
    kept = [NUMBERS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept or words) or plain


def exact(raw: str, answer: str) -> float:
    """1 if both are the same after ``normalized``, else 0."""
    return float(normalized(raw) == normalized(answer))


def soft(raw: str, answer: str) -> float:
    """1 if the words of the normalized answer stand in the normalized raw text, next to each other and in order.

    Singular and plural count as the same word. Nothing is understood: "no dog" holds "dog", and a text that lists every
    answer holds the right one; compare conditions by it, not models that talk more with models that talk less.
    """
    said, right = (_folded(text) for text in (raw, answer))
    return float(bool(right) and f" {right} " in f" {said} ")


def _folded(text: str) -> str:
    return " ".join(singular(word) for word in normalized(text).split())


def singular(word: str) -> str:
    """A normalized English noun in the singular, roughly: "boxes" -> "box", "ladies" -> "lady", "glass" -> "glass"."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
