"""Policies and helpers with which the engine is tested; they inherit nothing from the library."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import vtprune
from tests import tiny
from vtprune import BEFORE_LLM, Selection, VisualTokens

STAGES = {
    "before": (BEFORE_LLM,),
    "layer": (2,),
    "before_and_layer": (BEFORE_LLM, 2),
    "three": (BEFORE_LLM, 1, 3),
}


@dataclass
class ByNorm:
    """Keeps the rows of largest norm: what it answers depends on everything that ran before."""

    sites: tuple[float, ...] = (BEFORE_LLM,)
    ratio: float = 0.5
    needs: frozenset[str] = frozenset()
    positions: str = "original"

    def select(self, tokens: VisualTokens) -> Selection:
        k = max(1, math.ceil(self.ratio * len(tokens)))
        return Selection(tokens.hidden.float().norm(dim=-1).topk(k).indices.sort().values)


@dataclass
class Dice:
    """Keeps random rows, other ones in every row of every batch: beams of one sample disagree."""

    sites: tuple[float, ...]
    ratio: float = 0.5
    needs: frozenset[str] = frozenset()
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(5))

    def select(self, tokens: VisualTokens) -> Selection:
        order = torch.randperm(len(tokens), generator=self.generator)
        return Selection(order[: max(1, math.ceil(self.ratio * len(tokens)))].sort().values)


class Look:
    """Keeps the even rows, at two sites, and remembers the signals of every sample."""

    sites = (1, 2)

    def __init__(self, *needs):
        self.needs, self.seen = frozenset(needs), []

    def select(self, tokens):
        self.seen.append((tokens, {name: tokens.signals[name] for name in tokens.signals}))
        return Selection(torch.arange(0, len(tokens), 2))


class KeepAll:
    """Answers with every row, through the whole machinery of asking."""

    needs = frozenset()

    def __init__(self, *sites: float):
        self.sites = sites

    def select(self, tokens: VisualTokens) -> Selection:
        return Selection(torch.arange(len(tokens)))


def visible(model: nn.Module) -> dict[float, Tensor]:
    """Site -> (B, L) bool, what the last prefill left visible: the input of the masking oracle."""
    last = vtprune.report(model).last
    masks = {}
    for record in last.sites:
        mask = torch.ones(len(last.layout.rows), last.layout.length, dtype=torch.bool)
        for b, row in enumerate(last.layout.rows):
            columns = row.columns[last.offered[b]]
            mask[b, columns] = False
            mask[b, columns[record.kept[b]]] = True
        masks[record.site] = mask
    return masks


def traces(model: nn.Module) -> list:
    """Everything that wrapping could leave behind on a model's modules."""
    return [
        (set(vars(m)), type(m), len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ]


def answer(model: nn.Module, inputs: tiny.Batch, n: int = 5, **more) -> tuple[Tensor, list[Tensor]]:
    """Greedy tokens and the logits of every step."""
    out = tiny.greedy(model, inputs, n, **more)
    return out.sequences, list(out.logits)
