"""What evaluations of the embedded models share: greedy answers in batches, constant guesses, right answers by kind."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch


class Asked(Protocol):
    """A question: its kind and the right answer."""

    kind: str
    answer: str


def replies(
    model: torch.nn.Module, processor: Any, pairs: Sequence[tuple[Any, str]], visual: str, batch: int
) -> Iterator[str]:
    """The model's greedy answers to (picture or clip, or None, and question) pairs; all pairs or none must have one.

    visual: "image" or "video".
    """
    for first in range(0, len(pairs), batch):
        yield from said(model, processor, encoded(processor, pairs[first : first + batch], visual, model.device))


def encoded(processor: Any, pairs: Sequence[tuple[Any, str]], visual: str, device: torch.device | str) -> Any:
    """Model inputs of one batch of pairs, see ``replies``."""
    visuals, texts = zip(*pairs, strict=True)
    prompts = []
    for one, text in zip(visuals, texts, strict=True):
        content = [{"type": visual}] * (one is not None) + [{"type": "text", "text": text}]
        chat = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
    given = {} if visuals[0] is None else {f"{visual}s": list(visuals)}
    return processor(text=prompts, padding=True, return_tensors="pt", **given).to(device)


def said(model: torch.nn.Module, processor: Any, inputs: Mapping[str, torch.Tensor]) -> list[str]:
    """The greedy answer to each prompt of a batch."""
    with torch.inference_mode():
        output = model.generate(**inputs)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def most_frequent(questions: Sequence[Asked], seen: Iterable[Asked]) -> list[str]:
    """The most frequent answer to each question's kind among the questions ``seen``: what a constant guess is worth."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for question in seen:
        counts[question.kind][question.answer] += 1
    return [counts[question.kind].most_common(1)[0][0] for question in questions]


def tally(questions: Sequence[Asked], answers: Mapping[str, Sequence[str]], kinds: Iterable[str]) -> dict[str, dict]:
    """{kind, and "all": {"n": questions, column: right answers}} of the ``answers`` in each column."""
    rows = {}
    for kind in (*kinds, "all"):
        which = [i for i, question in enumerate(questions) if kind in (question.kind, "all")]
        rows[kind] = {"n": len(which)} | {
            column: sum(texts[i] == questions[i].answer for i in which) for column, texts in answers.items()
        }
    return rows
