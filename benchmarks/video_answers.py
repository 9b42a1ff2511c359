"""Which questions about clips are answered right, under every condition: frames read, share kept, policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import vtprune
from benchmarks.video_clips import Filed
from vtprune.bench.choose_conditions import read_policy
from vtprune.embedded.asking import encoded, said
from vtprune.embedded.clip_questions import ClipQuestion
from vtprune.embedded.scorer import objects_in
from vtprune.quota import FrameScorer
from vtprune.report import Report

UNPRUNED = "none"
FEW = 16
"""Frames that are cheap enough to be read and paid for in full: what pruning many frames has to beat."""
SLICE_TOKENS, SLICE_FRAMES = 16, 2
NUMBERS = ("of", "kept", "layer_share", "flops_share", "idle")
"""What ``counts`` gives as numbers."""


@dataclass(frozen=True)
class Condition:
    """``frames`` read, of whose visual tokens ``policy`` keeps ``keep_ratio``; "none" keeps all."""

    frames: int
    keep_ratio: float = 1.0
    policy: str = UNPRUNED

    @property
    def tokens(self) -> int:
        """Visual tokens before pruning."""
        return self.frames // SLICE_FRAMES * SLICE_TOKENS

    def build(self) -> object:
        """The policy as an object."""
        return read_policy(self.policy).make(self.keep_ratio)


def grid(frames: Sequence[int], ratios: Sequence[float], policies: Sequence[str]) -> list[Condition]:
    """Every number of frames, unpruned and with every policy at every ratio below 1."""
    found = [Condition(n) for n in frames]
    return found + [Condition(n, r, p) for n in frames for r in ratios if r < 1 for p in policies]


def at_one_budget(budget: int, multiples: Sequence[int], policies: Sequence[str]) -> list[Condition]:
    """As many visual tokens, ``budget``, of 1, 4, 10, ... times ``FEW`` frames; and what all their tokens give."""
    found = []
    for multiple in multiples:
        whole = Condition(FEW * multiple)
        found.append(whole)
        if budget < whole.tokens:
            found += [Condition(whole.frames, budget / whole.tokens, policy) for policy in policies]
    return found


def once(conditions: Sequence[Condition]) -> list[Condition]:
    """Without what is there twice, the fewest frames first."""
    return sorted(dict.fromkeys(conditions), key=lambda condition: condition.frames)


class SeenOnce(nn.Module):
    """A vision tower that looks once at a clip about which many questions are asked; the same numbers, sooner.

    It takes for granted that all clips of a call, and of all calls until ``forget``, are the same.
    """

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower, self.seen = tower, None

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.tower, name)

    def forget(self) -> None:
        """The next call has another clip."""
        self.seen = None

    def forward(self, hidden: Tensor, grid_thw: Tensor, **more):
        n = len(grid_thw)
        if self.seen is None:
            self.seen = self.tower(hidden[: len(hidden) // n], grid_thw=grid_thw[:1], **more)
        return type(self.seen)(**{name: _tiled(value, n) for name, value in self.seen.items()})


def _tiled(value, n: int):
    if isinstance(value, Tensor):
        return value.repeat(n, *[1] * (value.dim() - 1))
    return type(value)(_tiled(one, n) for one in value)


def looks_into_the_tower(policy: object) -> bool:
    """Whether it asks for signals that arise while the vision tower runs."""
    return any(need.partition(":")[0] in ("cls_attention", "vision_attention") for need in policy.needs)


def prompts(processor, questions: Sequence[ClipQuestion], frames: np.ndarray, device: torch.device | str):
    """Model inputs of questions about the frames of one clip."""
    return encoded(processor, [(frames, question.text) for question in questions], "video", device)


class Asker:
    """Asks a model about clips. model: unwrapped; its tower is stood in for until ``close``.

    Policies that go by ``frame_scores`` get those of ``scorer``, for each question apart; without it none.
    """

    def __init__(self, model: nn.Module, processor, scorer: FrameScorer | None = None):
        self.model, self.processor, self.scorer = model, processor, scorer
        self.tower = model.model.visual
        self.once = SeenOnce(self.tower)
        self.scores: dict[tuple[str, ...], Tensor] = {}
        self.inputs: Mapping[str, Tensor] = {}

    def close(self) -> None:
        """The model as it was."""
        self.model.model.visual = self.tower

    def ask(self, filed: Filed, conditions: Sequence[Condition]) -> Iterator[dict]:
        """What each condition gives for the questions about one clip: ``right``, a digit for each, and how much."""
        pixels, read = None, 0
        for condition in once(conditions):
            if condition.frames != read:
                read = condition.frames
                pixels = filed.read(read).pixels
                self.inputs = prompts(self.processor, filed.questions, pixels, self.model.device)
                self.once.forget()
                self.scores.clear()
            yield self._row(filed.questions, pixels, condition)

    def _row(self, questions: Sequence[ClipQuestion], pixels: np.ndarray, condition: Condition) -> dict:
        row = {"frames": condition.frames, "keep_ratio": condition.keep_ratio, "policy": condition.policy}
        try:
            policy = None if condition.policy == UNPRUNED else condition.build()
            self.model.model.visual = self.tower if policy and looks_into_the_tower(policy) else self.once
            if self.scorer is not None and hasattr(policy, "frame_scores"):
                answers, seen = zip(*[self._scored(policy, question, pixels) for question in questions], strict=True)
                row |= {**seen[0], **{name: sum(one[name] for one in seen) / len(seen) for name in NUMBERS}}
            else:
                with vtprune.pruned(self.model, policy) if policy else nullcontext() as report:
                    answers = said(self.model, self.processor, self.inputs)
                    if report is not None:
                        row |= counts(report)
        except ValueError as error:
            return row | {"error": str(error)}
        right = [text == question.answer for text, question in zip(answers, questions, strict=True)]
        return row | {"right": "".join(str(int(hit)) for hit in right)}

    def _scored(self, policy: object, question: ClipQuestion, pixels: np.ndarray) -> tuple[str, dict]:
        """The answer to one question whose frames were rated for it, and what was kept."""
        things = tuple(objects_in(question.text))
        if things not in self.scores:
            self.scores[things] = self.scorer(list(pixels), question.text, things)
        scored = dataclasses.replace(policy, frame_scores=self.scores[things])
        with vtprune.pruned(self.model, scored) as report:
            inputs = prompts(self.processor, [question], pixels, self.model.device)
            return said(self.model, self.processor, inputs)[0], counts(report)


def layer_share(report: Report) -> float:
    """Visual tokens that the layers process, of those in the prompt: the mean over layers and samples."""
    shares = [report.layer_mean(b) / before for b, (before, _) in enumerate(report.tokens)]
    return sum(shares) / len(shares)


def counts(report: Report) -> dict:
    """How much of the last prefill was kept, means over the samples."""
    before, after = zip(*report.tokens, strict=True)
    return {
        "of": sum(before) / len(before),
        "kept": sum(after) / len(after),
        "layer_share": layer_share(report),
        "flops_share": report.flops.total_causal / report.flops_unpruned.total_causal,
        "idle": sum(a == b for a, b in report.tokens) / len(before),
        "notes": report.notes,
    }
