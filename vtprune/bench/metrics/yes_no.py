"""Questions to be answered with yes or no: reads the answer, and counts as POPE does.

Li et al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023 (arXiv:2305.10355).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = re.compile(r"[a-z']+")
_STATED = re.compile(r"\banswer(?: is| would be| should be)?\s*[:=-]?\s*\W*(yes|no)\b(?!\s+\w)")
_CLOSING = re.compile(r"\b(?:so|thus|therefore|hence)\b,?\s*(?:the answer is\s*)?:?\s*(yes|no)\W*\Z")
_NONE_THERE = re.compile(r"(?:there (?:is|are|was|were)|i (?:can )?see) no (?!way|idea|information|telling|clear)\w")


def read_yes_no(raw: str) -> str | None:
    """ "yes" or "no" as the answer says, None if it says neither or both.

    It says so with its first word ("No, there is none"), with "the answer is yes", with "so yes" at its end, or with
    "There is no dog". What a sentence without these words may mean is not guessed.
    """
    text = " ".join(raw.lower().replace("*", "").replace("’", "'").split())
    words = _WORDS.findall(text)
    if words and words[0] in ("yes", "no"):
        # "yes and no" and "yes/no" are no answer, nor is "no idea"
        rest = [word for word in words[1:3] if word not in ("and", "or")]
        both = rest[:1] and rest[0] in ("yes", "no")
        unsure = words[0] == "no" and rest[:1] and rest[0] in ("idea", "clue", "way", "information")
        return None if both or unsure else words[0]
    found = {match for pattern in (_STATED, _CLOSING) for match in pattern.findall(text)}
    if not found and _NONE_THERE.match(text):
        found = {"no"}
    return found.pop() if len(found) == 1 else None


def binary(pairs: Sequence[tuple[str | None, str]]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and yes share of (answer as read, right answer) pairs; "yes" is the positive.

    An answer that could not be read (None) is wrong, and a negative prediction: it never helps precision or recall,
    and the yes share counts it among all answers. What divides by zero is 0.
    """
    right = sum(said == answer for said, answer in pairs)
    hits = sum(said == answer == "yes" for said, answer in pairs)
    predicted = sum(said == "yes" for said, _ in pairs)
    positive = sum(answer == "yes" for _, answer in pairs)
    return {
        "accuracy": _share(right, len(pairs)),
        "precision": _share(hits, predicted),
        "recall": _share(hits, positive),
        "F1": _share(2 * hits, predicted + positive),
        "yes share": _share(predicted, len(pairs)),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
