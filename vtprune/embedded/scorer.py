"""The embedded video model as a scorer of frames: it is asked of each frame whether what a question names is seen."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from vtprune.embedded.drawing import COLORS
from vtprune.embedded.stills import NOUNS, still_question

if TYPE_CHECKING:
    from vtprune.embedded.video_processor import ClipProcessor
    from vtprune.quota import YesNoScorer

ELSEWHERE = frozenset(("first", "last", "after", "before"))
"""Words of questions whose answer may be seen when what they name is not."""


def objects_in(question: str) -> list[str]:
    """The things that a question about a clip names, with their colour where it gives one; [] if it names none.

    "Which shape is red?" -> ["red shape"]. "What color is the shape when the 7 appears?" -> ["7"]: where a thing is
    named it says when to look, except for what comes before or after it, which takes all of its kind.
    """
    words = re.findall(r"[a-z]+|\d", question.lower())
    names = {name for some in NOUNS.values() for name in some}
    colors = [word for word in words if word in COLORS]
    nouns = [word.removesuffix("s") for word in words if word.removesuffix("s") in NOUNS]
    things = [
        f"{before} {word}" if before in COLORS else word for before, word in zip(["", *words], words) if word in names
    ]
    if not things:
        things = [f"{color} {noun}" for color in colors for noun in nouns] or nouns
    elif ELSEWHERE.intersection(words):
        things += nouns
    return list(dict.fromkeys(things))


def clip_scorer(model: nn.Module, processor: "ClipProcessor", batch_size: int = 64) -> "YesNoScorer":
    """A scorer for ``vtprune.quota``: the probability that the model says "yes" to seeing one of the objects.

    model, processor: of ``load_video``; the model must not be wrapped. Objects are those that are given, else those in
    the question (``objects_in``); for a question that names none, whether a shape or a digit is seen.
    """
    from vtprune.quota import YesNoScorer

    return YesNoScorer(model, processor, batch_size, answer="yes", prompt=_questions)


def _questions(question: str, objects: Sequence[str]) -> list[str]:
    return [still_question(thing) for thing in objects or objects_in(question) or NOUNS]
