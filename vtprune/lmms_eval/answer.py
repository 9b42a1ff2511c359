"""Answers a batch of prompts under a policy as a task asks for it: how long, until which words, greedy or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from vtprune.api import pruned
from vtprune.bench.ask import Prompt, read_prompts, stop_ids
from vtprune.models import Loaded
from vtprune.report import Report
from vtprune.seconds import frame_times

MAX_NEW_TOKENS = 1024
"""Of tasks that do not say."""

PARAGRAPH = "\n\n"
"""What lmms-eval fills in as ``until`` of tasks that name none; its own models do not stop there."""

_DRAWING = ("temperature", "top_p", "top_k")
_ALWAYS = ("num_beams", "repetition_penalty")
_READ = {*_DRAWING, *_ALWAYS, "until", "max_new_tokens", "do_sample"}


@dataclass(frozen=True)
class Manner:
    """How answers are generated. stops: texts before which an answer ends. more: further arguments of ``generate``."""

    stops: tuple[str, ...]
    max_new_tokens: int
    do_sample: bool
    more: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Answer:
    """What was answered to one prompt.

    input_tokens:  of the unpruned prompt. new_tokens: generated.
    before, after: visual tokens offered, and left after the last site; 0 without visuals.
    """

    text: str
    input_tokens: int
    new_tokens: int
    before: int = 0
    after: int = 0


def read_manner(asked: Mapping[str, Any]) -> tuple[Manner, list[str]]:
    """The manner of a task's ``generation_kwargs``, and the names among them that mean nothing here.

    As lmms-eval's own models do: drawn if the temperature is above 0, unless ``do_sample`` says no; greedy otherwise.
    """
    until = asked.get("until") or []
    until = [until] if isinstance(until, str) else until
    temperature = asked.get("temperature") or 0
    drawn = temperature > 0 and asked.get("do_sample", True) is not False
    names = (*_ALWAYS, *_DRAWING) if drawn else _ALWAYS
    more = {"num_beams": 1} | {name: asked[name] for name in names if asked.get(name) is not None}
    stops = tuple(stop for stop in until if stop and stop != PARAGRAPH)
    longest = int(asked.get("max_new_tokens") or MAX_NEW_TOKENS)
    return Manner(stops, longest, drawn, tuple(more.items())), sorted(set(asked) - _READ)


def answer(
    loaded: Loaded, policy: Any, prompts: Sequence[Prompt], manner: Manner, positions: str | None = None
) -> list[Answer]:
    """Answers to prompts of which either all show something or none does."""
    asked, model = read_prompts(loaded, prompts), loaded.model
    length, ends = asked.inputs["input_ids"].shape[1], stop_ids(model)
    more: dict[str, Any] = dict(manner.more)
    if manner.stops:
        more["stopping_criteria"] = [_Stops(loaded.processor.tokenizer, manner.stops, length)]
    with pruned(model, policy, positions=positions) as report, torch.inference_mode():
        with frame_times(asked.seconds) if asked.seconds else nullcontext():
            sequences = model.generate(
                **asked.inputs, max_new_tokens=manner.max_new_tokens, do_sample=manner.do_sample, use_cache=True, **more
            )
    given = asked.inputs["attention_mask"].sum(1).tolist()
    new = sequences[:, length:].cpu()
    texts = loaded.processor.batch_decode(new, skip_special_tokens=True)
    return [
        Answer(until_stop(text, manner.stops), given[b], _length(new[b], ends), *_kept(report, b))
        for b, text in enumerate(texts)
    ]


class _Stops(StoppingCriteria):
    """Ends samples that said a stop. transformers' own ``stop_strings`` cannot read tokenizers of whole words."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt: int):
        self.tokenizer, self.stops, self.prompt = tokenizer, stops, prompt
        # a letter takes up to four tokens, where they are bytes
        self.window = 4 * max(map(len, stops)) + 4

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        first = max(self.prompt, input_ids.shape[1] - self.window)
        texts = self.tokenizer.batch_decode(input_ids[:, first:], skip_special_tokens=True)
        if first == self.prompt:
            # blanks before an answer are no answer
            texts = [text.lstrip() for text in texts]
        said = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(said, device=input_ids.device)


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops, without blanks around it."""
    text = text.strip()
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def _length(tokens: Tensor, ends: set[int]) -> int:
    """Tokens up to the first that ends an answer; (T,)."""
    found = [i for i, token in enumerate(tokens.tolist()) if token in ends]
    return found[0] + 1 if found else len(tokens)


def _kept(report: Report, b: int) -> tuple[int, int]:
    return report.tokens[b] if report.last is not None else (0, 0)
