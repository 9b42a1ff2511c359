"""MME: two yes-or-no questions about each picture, one of either answer, in fourteen subtasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.metrics.yes_no import read_yes_no
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.picture import IN_A_WORD, PictureTask, Row, groups, mean, parquet
from vtprune.bench.tasks.pope import yes_or_no

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PUBLISHED_END = " Please answer yes or no."


@register
@dataclass(frozen=True)
class MME(PictureTask):
    """Of each subtask acc (the share of right answers) plus acc+ (of pictures with BOTH right), each out of 100.

    The sums of ten perception and four cognition subtasks are the published figures, out of 2000 and 800.
    """

    name: ClassVar[str] = "mme"
    summary: ClassVar[str] = "pairs of yes-or-no questions, perception and cognition"
    source: ClassVar[str] = "Fu et al., 2023, arXiv 2306.13394; lmms-lab/MME"
    metric: ClassVar[str] = "accuracy"

    def patterns(self) -> Sequence[str]:
        return parquet("test")

    def ask(self, row: Row) -> Iterable[Question]:
        id, question, answer, category = row.need("question_id", "question", "answer", "category")
        if category not in PERCEPTION + COGNITION:
            raise ValueError(f"{row.where}: category is one of {', '.join(PERCEPTION + COGNITION)}; got {category!r}")
        right = yes_or_no(answer, row)
        text = question.strip().replace(_PUBLISHED_END, "") + IN_A_WORD
        # both questions about a picture are published under one id, most of which begin with the category
        pair = id if id.startswith(f"{category}/") else f"{category}/{id}"
        labels = {"category": category, "ability": _ability(category)}
        yield row.ask(text, right, id=f"{pair}/{right}", labels=labels)

    def grade(self, question: Question, raw: str) -> Grade:
        parsed = read_yes_no(raw)
        return Grade(parsed, float(parsed == question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """The sums, named after what they can reach at most, the subtasks' scores, and the plain accuracy.

        Fewer subtasks (of a run over part of the questions) reach less. A picture of which one question only was asked
        counts for acc, not for acc+.
        """
        if not scored:
            return {}
        subtasks = groups(scored, lambda question: question.labels["category"])
        scores = {name: _score(group) for name, group in subtasks.items()}
        sums = {}
        for ability, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
            here = [scores[name] for name in names if name in scores]
            if here:
                sums[f"{ability} of {200 * len(here)}"] = sum(here)
        parts = {f"{name} of 200": scores[name] for name in PERCEPTION + COGNITION if name in scores}
        return {**sums, **parts, self.metric: mean(scored)}


def _ability(category: str) -> str:
    return "perception" if category in PERCEPTION else "cognition"


def _score(scored: Sequence[Scored]) -> float:
    """acc plus acc+ of one subtask, 0 to 200."""
    pairs = groups(scored, lambda question: question.id.rpartition("/")[0])
    whole = [pair for pair in pairs.values() if len(pair) == 2]
    both = sum(mean(pair) == 1 for pair in whole)
    return 100 * mean(scored) + (100 * both / len(whole) if whole else 0.0)
