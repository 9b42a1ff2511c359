"""Questions about pictures and clips whose cache was cut down before they were asked, and how each is answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vtprune
from benchmarks.decode_conditions import Condition
from benchmarks.decode_reading import Memory, along, divergence, greedy, read
from vtprune.embedded.clip_questions import ClipQuestion
from vtprune.embedded.clips import FRAMES, make_clip
from vtprune.embedded.scenes import Question, make_scene
from vtprune.report import measured_bytes

SECOND_TURNS = ("alone", "other")
"""What was read before a question: the picture or clip and nothing else, or with it another question, answered."""
FIRST_TURN = "first"
"""The question is in the prompt that is read, so that a policy of the cache acts behind its first answered word."""
ASKED = 8
"""Questions about a picture or clip, at most, drawn by its number."""
_STREAM = 91


@dataclass(frozen=True)
class Subject:
    """A picture or a clip of the test split. visual: a picture, or (T, H, W, 3) frames. other: asked first."""

    kind: str
    seed: int
    visual: Any
    other: Question | ClipQuestion
    questions: tuple[Question | ClipQuestion, ...]


def subject(kind: str, seed: int) -> Subject:
    """The picture ("image") or clip ("video") of that number."""
    made = make_scene(seed, "test") if kind == "image" else make_clip(seed, "test", FRAMES)
    order = np.random.Generator(np.random.PCG64([seed, _STREAM])).permutation(len(made.questions))
    other, *asked = [made.questions[row] for row in order[: 1 + ASKED]]
    return Subject(kind, seed, made.image if kind == "image" else made.frames, other, tuple(asked))


class Asked:
    """One subject, asked about in one turn. model: not wrapped."""

    def __init__(self, model: nn.Module, processor: Any, one: Subject, turn: str):
        self.model, self.processor, self.one, self.turn = model, processor, one, turn
        self.end, self.most = processor.tokenizer.eos_token_id, model.generation_config.max_new_tokens
        texts = [q.text for q in one.questions]
        if turn == FIRST_TURN:
            self.inputs, self.rows = self._prompts(texts), list(range(len(texts)))
            self.words: list[list[int]] = [[] for _ in texts]
            return
        self.inputs, self.rows = self._prompts([one.other.text if turn == "other" else None]), [0] * len(texts)
        before = self._other_answer() if turn == "other" else []
        self.words = [[*before, *processor.tokenizer(f"{text}<answer>").input_ids] for text in texts]

    def _prompts(self, texts: Sequence[str | None]) -> Mapping[str, Tensor]:
        """Model inputs: the picture or clip and each text; without one there is nothing yet that asks for an answer."""
        chats = []
        for text in texts:
            content = [{"type": self.one.kind}, *([{"type": "text", "text": text}] if text else [])]
            chat = [{"role": "user", "content": content}]
            chats.append(self.processor.apply_chat_template(chat, add_generation_prompt=text is not None))
        visuals = {f"{self.one.kind}s": [self.one.visual] * len(chats)}
        return self.processor(text=chats, padding=True, return_tensors="pt", **visuals).to(self.model.device)

    def _other_answer(self) -> list[int]:
        """The unpruned model's answer to the other question, which every condition is taken to have given."""
        return greedy(self.model, read(self.model, self.inputs), [0], [[]], self.end, self.most)[0]

    @cached_property
    def reference(self) -> tuple[Memory, list[list[int]], list[Tensor]]:
        """Of the unpruned model: its cache, its greedy answers, and the logits of every token of them."""
        memory = read(self.model, self.inputs)
        answers = greedy(self.model, memory, self.rows, self.words, self.end, self.most)
        return memory, answers, self._along(memory, answers)

    def _along(self, memory: Memory, answers: Sequence[Sequence[int]]) -> list[Tensor]:
        texts = [[*words, *answer[:-1]] for words, answer in zip(self.words, answers, strict=True)]
        found = along(self.model, memory, self.rows, texts)
        return [logits[len(words) :] for logits, words in zip(found, self.words, strict=True)]

    def unpruned(self) -> dict:
        """The row of the reference; tokens: how many each of its answers has, the end included."""
        memory, answers, logits = self.reference
        return {**self._row(memory, answers, logits), "tokens": list(map(len, answers))}

    def pruned(self, condition: Condition) -> dict:
        """The row of a condition: right and same, a digit for each question; kl, a number; kv_bytes of a prompt.

        same: whether the answer is word for word that of the unpruned model. kl: along that answer, see ``divergence``.
        """
        expected = self.reference[1]
        try:
            policy = condition.build(self.model.config.get_text_config().num_hidden_layers)
        except ValueError as error:
            return {"skipped": str(error)}
        with vtprune.pruned(self.model, policy):
            memory = read(self.model, self.inputs)
            logits = self._along(memory, expected)
            answers = list(map(list, expected))
            # whoever agrees with every word says the same; the others are asked
            differ = [
                i
                for i, (one, answer) in enumerate(zip(logits, expected, strict=True))
                if one.argmax(-1).tolist() != answer
            ]
            rows, words = [self.rows[i] for i in differ], [self.words[i] for i in differ]
            for i, answer in zip(differ, greedy(self.model, memory, rows, words, self.end, self.most), strict=True):
                answers[i] = answer
        return self._row(memory, answers, logits)

    def _row(self, memory: Memory, answers: Sequence[list[int]], logits: Sequence[Tensor]) -> dict:
        _, expected, theirs = self.reference
        said = [text.strip() for text in self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]
        pairs = zip(theirs, logits, strict=True)
        return {
            "right": digits(text == q.answer for text, q in zip(said, self.one.questions, strict=True)),
            "same": digits(a == b for a, b in zip(answers, expected, strict=True)),
            "kl": [round(divergence(a, b), 6) for a, b in pairs],
            "kv_bytes": measured_bytes(memory.cache) // len(memory.places),
        }


def digits(hits: Iterator[bool]) -> str:
    """ "0110..." """
    return "".join(str(int(hit)) for hit in hits)


def ask(
    model: nn.Module, processor: Any, kind: str, seed: int, turn: str, conditions: Sequence[Condition]
) -> Iterator[tuple[str, dict]]:
    """(name, row) of the unpruned model and of every condition, for the questions about one subject."""
    with torch.no_grad():
        asked = Asked(model, processor, subject(kind, seed), turn)
        yield Condition().name, asked.unpruned()
        for condition in conditions:
            yield condition.name, asked.pruned(condition)
