"""VQA accuracy: an answer counts as much as people gave it.

Antol et al., VQA: Visual Question Answering, ICCV 2015, and the text processing of the challenge's evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = frozenset(("a", "an", "the"))
AGREEING = 3
"""So many people make an answer right."""

_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {wrong: right for right in _CONTRACTIONS for wrong in _without_one_apostrophe(right)}
CONTRACTIONS["somebody'd"] = "somebodyd"

_BETWEEN_DIGITS = re.compile(r"\d,\d")
_POINT = re.compile(r"\.(?!\d)")


def vqa_accuracy(raw: str, answers: Sequence[str]) -> float:
    """The mean over all ways to leave one answer out of min(1, matches among the others / 3).

    answers: those of ten people. Of fewer than four, not even one that all gave is worth 1.

    Both sides are processed alike. (The challenge's own script leaves number words and articles in people's answers,
    which were published without most of them; there "none" never equals "none", because one side becomes "0".)
    Raises ValueError without answers.
    """
    if not answers:
        raise ValueError("VQA accuracy compares with what people answered, usually ten; got no answers")
    said = processed(raw)
    same = [processed(answer) == said for answer in answers]
    matches = sum(same)
    return sum(min(1.0, (matches - one) / AGREEING) for one in same) / len(same)


def processed(text: str) -> str:
    """An answer as the challenge compares it.

    Punctuation goes (and leaves a space where it stood between letters, unless there is a number with a comma), points
    that no digit follows too, articles too; number words become digits, contractions get their apostrophe back.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = (NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    number = _BETWEEN_DIGITS.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or number else " ")
    return _POINT.sub("", result)
