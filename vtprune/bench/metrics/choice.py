"""Multiple choice: how options are written under letters, and which letter an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vtprune.bench.metrics.letter_marks import Mark, find_marks, plain
from vtprune.bench.metrics.text import normalized
from vtprune.bench.metrics.yes_no import read_yes_no
from vtprune.bench.question import LETTERS

_PREFIX = re.compile(r"\s*[(\[]?\s*([A-Za-z])\s*[)\].:]\s*(?=\S)")
# outside the options' own words: whoever says one of these may mean the opposite of what he names
_DENIAL = re.compile(
    r"\b(?:not?|never|neither|nor|none|without|except|unlike|cannot|unsure|unclear)\b|\w+n't\b|\bthan\b"
)

# "B dog"; not "A dog" and "I see a dog"
_BEGINS = re.compile(r"\W*([B-HJ-Z])\s")


def lettered(options: Sequence[str], style: str = "A. ") -> str:
    """The options, one a line, under their letters. style: what stands before the first one, such as "(A) "."""
    if "A" not in style:
        raise ValueError(f'style shows the letter A, such as "A. " or "(A) "; got {style!r}')
    if len(options) > len(LETTERS):
        raise ValueError(f"there are {len(LETTERS)} letters; got {len(options)} options")
    return "\n".join(style.replace("A", letter, 1) + option for letter, option in zip(LETTERS, options))


def unprefixed(options: Sequence[str]) -> tuple[str, ...]:
    """The options without "A. ", "(B) ", "C) ", "D: " before them, if each of two or more carries its own letter."""
    found = [_PREFIX.match(option) for option in options]
    own = [match is not None and match[1].upper() == letter for match, letter in zip(found, LETTERS)]
    if not 2 <= len(options) == sum(own):
        return tuple(options)
    return tuple(option[match.end() :].strip() for option, match in zip(options, found))


def read_letter(raw: str, options: Sequence[str]) -> str | None:
    """The letter that an answer chooses; None if it chooses none of the options, or several.

    raw:     what the model said. options: what it could choose, without letters.

    In this order, and never by chance: the answer is an option's text (case, articles and punctuation aside); it names
    one letter ("B", "(B)", "b.", "B. a dog", "Answer: B", "The answer is (B) because (A) ...", "I choose B"); it names
    no letter and holds the text of one option, with no "not" beside it. "A dog is running" names no letter. An answer
    that names a letter and gives another option's text is not read, nor is one that only says what is wrong.
    """
    text = plain(raw)
    texts = [normalized(option) for option in options]
    marks = find_marks(text)
    if not (marks and marks[0].is_everything):
        same = [i for i, option in enumerate(texts) if option == normalized(text)]
        if same:
            return LETTERS[same[0]] if len(same) == 1 else None
    if marks and not marks[0].before and _own(marks[0], texts):
        return marks[0].letter
    stated = [mark for mark in marks if mark.role == "final"] or [mark for mark in marks if mark.role == "stated"]
    first = [mark for mark in marks if mark.role == "first"]
    chosen = stated or [mark for mark in marks if mark.role in ("first", "named")]
    if stated:
        # something else in a line of its own, or below
        below = len(stated[0].before)
        chosen = [*stated, *(mark for mark in first if mark.fills_its_line or len(mark.before) > below)]
    if chosen:
        return _agreed(chosen, texts)
    if any(mark.role == "denied" for mark in marks):
        return None
    return _told(text, texts)


def _own(mark: Mark, texts: Sequence[str]) -> bool:
    """Whether the rest of the answer is the text of the letter's option."""
    row = LETTERS.index(mark.letter)
    return row < len(texts) and normalized(mark.rest) == texts[row] and bool(mark.rest)


def _agreed(marks: Sequence[Mark], texts: Sequence[str]) -> str | None:
    """The one letter of these marks, unless it is no option's or stands beside the text of another one."""
    letters = {mark.letter for mark in marks}
    letter = letters.pop()
    row = LETTERS.index(letter)
    if letters or row >= len(texts):
        return None
    # a line much longer than every option says more than one of them
    longest = 4 * max(map(len, texts)) + 40
    beside = {normalized(text) for mark in marks for text in mark.beside if 0 < len(text) <= longest}
    return letter if texts[row] in beside or not beside.intersection(texts) else None


def _told(text: str, texts: Sequence[str]) -> str | None:
    """The letter of the one option whose text the answer holds."""
    said = f" {normalized(text)} "
    yes_no = read_yes_no(text)
    held = [i for i, option in enumerate(texts) if _holds(said, option, yes_no)]
    if not held:
        return None
    longest = max(held, key=lambda i: len(texts[i]))
    rest = said.replace(f" {texts[longest]} ", " | ")
    # "a dog and a cat" holds "a dog" too, which is only another option if it is said once more
    others = [i for i in held if i != longest]
    if any(_holds(rest, texts[i], yes_no) or f" {texts[i]} " not in f" {texts[longest]} " for i in others):
        return None
    begins = _BEGINS.match(text)
    if texts.count(texts[longest]) > 1 or (begins and begins[1] != LETTERS[longest]):
        return None
    if texts[longest] != yes_no and _DENIAL.search(_without(text.lower(), texts[longest])):
        return None
    return LETTERS[longest]


def _holds(said: str, option: str, yes_no: str | None) -> bool:
    return option == yes_no if option in ("yes", "no") else f" {option} " in said


def _without(text: str, option: str) -> str:
    """A text without an option's words."""
    words = r"\W+".join(map(re.escape, option.split()))
    return re.sub(rf"\b{words}\b", " ", text)
