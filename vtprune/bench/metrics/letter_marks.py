"""Single letters in an answer that may name an option, and what the answer says about each."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Role = Literal["final", "stated", "first", "named", "denied", ""]
"""What an answer says with a letter.

final, stated: "the final answer is B", "the answer is B", "I choose B", "B is correct".
first:  the answer, or a line of it, begins with the letter.
named:  "(B)" anywhere, or "B." before a text.
denied: "not (B)", "B is wrong". Nothing ("") of a letter that may be a word.
"""

_MARK = re.compile(
    r"(?<!\w)[(\[{<]\s*(?P<in_brackets>[A-Za-z])\s*[)\]}>]"
    r"|(?<![\w'.&])(?P<before_bracket>[A-Za-z])\)"
    r"|(?<![\w'.&])(?P<alone>[A-Za-z])(?![\w'])"
)

_NOUN = r"(?:options?|choices?|letters?|answers?|responses?|alternatives?)"
# a list of options begins with "Options:", which says nothing
_THE = r"(?:option|choice|letter|answers?|response|alternative)"
_SURELY = r"(?:(?:most\s+)?likely|probably|therefore|thus|clearly|definitely|indeed|simply)"
_IS = rf"(?:\s+(?:is|are|was|be|would|will|should|must|has|to|seems|appears|{_SURELY}))*"
_THINK = r"\b(?:so|thus|therefore|hence|think|believe|say|guess)"
_STARTS = rf"(?:^|[\n.,;:!?]|{_THINK}|\bthat)\s*"
_SAYS = re.compile(
    "|".join(
        f"(?:{one})$"
        for one in (
            rf"\b{_THE}{_IS}\s*[:=>→-]*\s*(?:the\s+)?(?:{_NOUN}\s*[:=-]?\s*)?",
            rf"\b(?:choose|chose|pick|select|selected|go\s+with|going\s+with)\s+(?:the\s+)?(?:{_NOUN}\s*)?",
            rf"{_STARTS}(?:it|that|this)(?:'s|{_IS})\s+(?:{_NOUN}\s*)?",
            r"\b(?:so|thus|therefore|hence)[,:]?\s+",
            r"\b(?:correct|right|best|likely)\s+(?:one\s+)?is\s*:?\s*",
            r"\b(?:correct|right|best|likely)\s*(?:one)?:\s*",
        )
    )
)
_FINALLY = re.compile(rf"\bfinal\s+{_NOUN}{_IS}\s*[:=>→-]*\s*(?:the\s+)?(?:{_NOUN}\s*)?$")
_CALLED = re.compile(r"\b(?:option|choice|letter)\s+$")
_CORRECT = re.compile(
    r"\s*(?:is|seems|looks|would\s+be|appears)(?:\s+to\s+be)?(?:\s+the)?(?:\s+most)?"
    r"\s+(?:correct|right|best|true|accurate|answer|likely|appropriate|closest)\b"
)
_BEGINS = re.compile(rf"{_STARTS}(?:{_NOUN}\s+)?$")
_NOT_BEFORE = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bnever|\bexcept|\beliminat\w+|\bexclud\w+|\brul(?:e|es|ed|ing)\s+out"
    rf"|\brather\s+than|\binstead\s+of|\bunlike|\bthan|\bwithout)\s+(?:the\s+)?(?:{_NOUN}\s+)?$"
)
_NOT_AFTER = re.compile(
    r"\s*(?:is|are|was|seems?|looks?|can\s+be|could\s+be|would\s+be|does|did|can)?\s*"
    r"(?:n't|not\b|wrong\b|incorrect\b|false\b|unlikely\b|impossible\b|cannot\b|ruled\b|eliminated\b|excluded\b)"
)
# after a letter that is no word: "B.", "B, because", "B - a dog", "B/C"; not "A dog", "A-frame", "A.M."
_ENDS = re.compile(r"\s*(?:[.,;:!?]+(?!\w)|\n|$|[/&])|\s+(?:because|since|as|and|or|but|is|seems|looks|[-–—])(?!\w)")
_STOPS = re.compile(r"\s*[.:;!?](?:\s|$)")
_DELIMITER = re.compile(r"\s*[.,:;)–—-]*\s*")
_LISTED = re.compile(rf"[\s,;/&:.]*(?:\b(?:and|or|nor)\b)?\s*(?:{_NOUN}\s+)?")
_ECHO = re.compile(r"[.:]\s+\S")
_BULLET = re.compile(r"(?:^|\n)[ \t]*(?:[-•>#]+[ \t]*)?$")


_NEAR = 160  # letters before and after one that say what is meant with it


@dataclass(frozen=True)
class Mark:
    """A letter of an answer: upper case, its role, and the answer before and after it."""

    letter: str
    role: Role
    before: str
    after: str

    @property
    def rest(self) -> str:
        """What follows it, without "." or ":" between."""
        return self.after[_DELIMITER.match(self.after).end() :].strip()

    @property
    def beside(self) -> tuple[str, str]:
        """What stands before and after it in its line."""
        return self.before.rpartition("\n")[2].strip(), self.rest.partition("\n")[0].strip()

    @property
    def fills_its_line(self) -> bool:
        return not re.search(r"\w", self.before.rpartition("\n")[2] + self.after.partition("\n")[0])

    @property
    def is_everything(self) -> bool:
        """Whether the answer is this letter and nothing else."""
        return not re.search(r"\w", self.before + self.after)


def plain(raw: str) -> str:
    """An answer without the marks of Markdown, LaTeX and XML, quotes, and wide letters; lines stay lines."""
    text = unicodedata.normalize("NFKC", raw).replace("’", "'").replace("‘", "'")
    text = re.sub(r"\\(?:boxed|text|textbf|mathbf|mathrm)\s*", "", text)
    text = re.sub(r"</\w+>|<[A-Za-z_|]{2,}/?>|[*`\"“”$_]", " ", text)
    text = re.sub(r"(?<!\w)'(\w.*?)'(?!\w)", r"\1", text)
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


def find_marks(text: str) -> list[Mark]:
    """The letters of a ``plain`` answer that may name an option, in order."""
    marks: list[Mark] = []
    end = 0
    for match in _MARK.finditer(text):
        sure = match["alone"] is None
        letter = match[match.lastgroup]
        first, last = match.start() - _NEAR, match.end() + _NEAR
        # what was cut off is a letter to the patterns, so that nothing begins there
        before = text[max(first, 0) : match.start()] if first <= 0 else "x" + text[first : match.start()]
        after = text[match.end() : last] + "x" * (last < len(text))
        role = _role(letter, sure, before, after)
        if marks and role in ("", "named", "first") and _LISTED.fullmatch(text[end : match.start()]):
            # "A and B", "A, B": what is said of the one is said of the other
            role = marks[-1].role if sure or _is_letter(letter, before, after) else role
        if role:
            marks.append(Mark(letter.upper(), role, text[: match.start()], text[match.end() :]))
            end = match.end()
    return marks


def _role(letter: str, sure: bool, before: str, after: str) -> Role:
    lower = before.lower()
    if not sure and letter.isupper() and _CALLED.search(lower):
        sure = True
    if not sure and not _is_letter(letter, before, after):
        return ""
    if _NOT_BEFORE.search(lower) or _NOT_AFTER.match(after.lower()):
        return "denied"
    if _FINALLY.search(lower):
        return "final"
    if _SAYS.search(lower) or (_CORRECT.match(after.lower()) and (sure or _BEGINS.search(lower))):
        return "stated"
    if _BULLET.search(before):
        return "first"
    return "named" if sure or (letter.isupper() and _ECHO.match(after)) else ""


def _is_letter(letter: str, before: str, after: str) -> bool:
    """Whether a letter without brackets is no word."""
    if letter.isupper():
        return _ENDS.match(after) is not None
    if not after:
        # "the answer is a" was cut off before the noun
        return not before or before.rstrip().endswith((":", "=")) or _CALLED.search(before.lower()) is not None
    return _STOPS.match(after) is not None
