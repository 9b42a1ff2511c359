"""TransPrune: drop, in three stages inside the LLM, the visual tokens that layers change little and the text ignores.

Li et al., "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model", CVPR 2026,
arXiv:2507.20630.
Differs from the authors' code: batches, padding and grouped-query attention work, every image has its own budget (there
the first image alone is pruned) and is looked at by the text after it, at least one token of it stays, layers may be
scaled to the model's depth, ties go to the lowest index. As there, the direction is 1 - cosine;
``direction="unsigned"`` is the paper's 1 - |cosine|. Models with mRoPE, where positions stay original, are an
extension.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.forecast import Forecast, staged
from vtprune.blocks.stages import pool_sizes
from vtprune.policies.base import Ranked, best_of, check_choices, check_ratio, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

_CHOICES = {
    "criteria": ("both", "transition", "attention"),
    "direction": ("signed", "unsigned"),
    "budget": ("segment", "prompt"),
}


@register("transprune")
@dataclass
class TransPrune:
    """Scores by token transition variation, summed over layers, plus attention from the text in the layer ahead.

    keep_ratio:  fraction of visual tokens KEPT after the last stage, in (0, 1]; the stages before it follow along. None
                 takes ``keep_ratios`` as they are.
    keep_ratios: fraction of the original count kept at each stage; the paper's "High" setting.
    layers:      the stages: first decoder layers that see the shorter sequence, counted in a model of ``of`` layers.
    accumulate:  decoder layers whose transitions are summed, counted likewise; the earlier ones of a stage count again.
    of:          depth that ``layers`` and ``accumulate`` are meant for; they are scaled to the model. None: taken as
                 they are.
    criteria:    "both", "transition" (the paper's TTV alone) or "attention" (its IGA alone).
    direction:   "signed" is 1 - cosine, "unsigned" 1 - |cosine|.
    budget:      "segment" gives every image or video its own share, "prompt" pools them.
    newlines:    whether newline and separator tokens compete, as in the authors' code; False protects them.
    """

    keep_ratio: float | None = None
    keep_ratios: tuple[float, ...] = (0.875, 0.625, 0.125)
    layers: tuple[int, ...] = (7, 9, 12)
    accumulate: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    of: int | None = 32
    criteria: Literal["both", "transition", "attention"] = "both"
    direction: Literal["signed", "unsigned"] = "signed"
    budget: Literal["segment", "prompt"] = "segment"
    newlines: bool = True

    positions = "compact"

    def __post_init__(self):
        check_choices(self, _CHOICES)
        self.layers = _indices("layers", self.layers, 1)
        self.accumulate = _indices("accumulate", self.accumulate, 0)
        if self.of is not None and (not _is_index(self.of, 2) or self.of <= self.layers[-1]):
            raise ValueError(f"of is the depth that layers={self.layers} are counted in, or None; got {self.of!r}")
        if self.accumulate[0] >= self.layers[0]:
            raise ValueError(
                f"the first stage, before layer {self.layers[0]}, must come after the first of accumulate; "
                f"got {self.accumulate}"
            )
        self._check_ratios()

    def _check_ratios(self) -> None:
        if not isinstance(self.keep_ratios, Sequence) or len(self.keep_ratios) != len(self.layers):
            raise ValueError(f"keep_ratios has one entry for each of layers={self.layers}; got {self.keep_ratios!r}")
        self.keep_ratios = tuple(self.keep_ratios)
        for ratio in self.keep_ratios:
            check_ratio(ratio)
        if list(self.keep_ratios) != sorted(self.keep_ratios, reverse=True):
            raise ValueError(f"keep_ratios are fractions of the original count, so they fall; got {self.keep_ratios!r}")
        if self.keep_ratio is None:
            return
        check_ratio(self.keep_ratio)
        if self.keep_ratios[-1] == 1 and self.keep_ratio != 1:
            raise ValueError(
                f"keep_ratio={self.keep_ratio!r} cannot be reached from keep_ratios={self.keep_ratios!r}, which keep "
                "everything"
            )

    @property
    def sites(self) -> tuple[int, ...]:
        return self.layers

    @property
    def needs(self) -> frozenset[str]:
        wanted = {self._transition} if self.criteria != "attention" else set()
        return frozenset(wanted | ({"text_attention:peek"} if self.criteria != "transition" else set()))

    @property
    def _transition(self) -> str:
        name = "transition" if self.direction == "signed" else "transition_unsigned"
        return f"{name}:{','.join(map(str, self.accumulate))}"

    def fitted(self, facts: ModelFacts) -> "TransPrune":
        """The stages at the same fractions of this model's depth; of stages that fall together the last holds."""
        if self.of is None:
            return self

        def rank(layer: int) -> int:
            return max(1, min(facts.depth - 1, round(layer * facts.depth / self.of)))

        stages = {rank(layer): ratio for layer, ratio in zip(self.layers, self.keep_ratios, strict=True)}
        seen = sorted({rank(layer + 1) - 1 for layer in self.accumulate})
        return replace(self, layers=tuple(stages), keep_ratios=tuple(stages.values()), accumulate=tuple(seen), of=None)

    def kept_at(self, stage: int) -> float:
        """The fraction of the original count that a stage keeps."""
        ratio, last = self.keep_ratios[stage], self.keep_ratios[-1]
        if self.keep_ratio is None or last == 1:
            return ratio
        if ratio == last:
            # as it was given: a power of logarithms may end up below it, and counts are rounded down
            return self.keep_ratio
        # a power keeps 1 where it is and takes the last ratio to the wanted one
        return ratio ** (math.log(self.keep_ratio) / math.log(last))

    def left_at(self, site: float, living: int, size: int) -> int:
        """How many of the ``living`` tokens of a pool that had ``size`` stay at a site."""
        return max(1, min(living, int(size * self.kept_at(self.layers.index(site)))))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        return staged(self, self.sites, pool_sizes(tokens, self.budget), TransPrune.left_at)

    def _counts(self, tokens: VisualTokens) -> list[tuple[slice, int, int]]:
        """Rows that share a budget, how many of them stay at this stage, and where their first image ends."""
        found = self._pools(tokens)
        return [(rows, self.left_at(tokens.site, rows.stop - rows.start, n), end) for rows, (n, end) in found]

    def ranked(self, tokens: VisualTokens) -> list[Ranked]:
        """Every pool with its scores and its count."""
        return [Ranked(rows, k, self.score(tokens, rows, end)) for rows, k, end in self._counts(tokens)]

    def select(self, tokens: VisualTokens) -> Selection:
        """The best rows of every pool; nothing is looked at where all stay whole."""
        whole = all(k == rows.stop - rows.start for rows, k, _ in self._counts(tokens))
        return Selection.all(tokens) if whole else best_of(self.ranked(tokens))

    def _pools(self, tokens: VisualTokens) -> list[tuple[slice, tuple[int, int]]]:
        """Rows that share a budget, with their original count and the column where their first segment ends."""
        segments = [segment for segment in tokens.segments if len(segment)]
        if self.budget == "prompt":
            spans = {-1: slice(0, len(tokens))}
        else:
            spans = {segment.source: segment.span for segment in segments}
        for source, span in spans.items():
            end = segments[0].span.stop if source < 0 else span.stop
            tokens.memory.setdefault(source, (span.stop - span.start, int(tokens.position[end - 1])))
        return [(span, tokens.memory[source]) for source, span in spans.items()]

    def score(self, tokens: VisualTokens, pool: slice, end: int) -> Tensor:
        """(n,) float32 of the rows of a pool whose first segment ended in column ``end``; the paper's eq. of TTV + IGA.

        Each part sums to 1 over the pool.
        """
        total = torch.zeros(pool.stop - pool.start, device=tokens.hidden.device)
        if self.criteria != "attention":
            variation = tokens.signals[self._transition][:, pool].float().sum(0)
            total = total + variation / (variation.sum() + 1e-8)
        if self.criteria != "transition":
            rows = tokens.signals["text_attention:peek"][tokens.text_position > end][:, pool]
            if len(rows):
                attention = rows.to(tokens.hidden.dtype).mean(0)
                total = total + attention / (attention.sum() + 1e-8)
        return total


def _is_index(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _indices(name: str, values: object, least: int) -> tuple[int, ...]:
    listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    if not listed or not all(_is_index(v, least) for v in values) or list(values) != sorted(set(values)):
        raise ValueError(f"{name} are ascending indices of decoder layers, {least} or more; got {values!r}")
    return tuple(values)
