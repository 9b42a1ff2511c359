"""SparseVLM: text tokens that the image points to judge its tokens, in stages; the best of the dropped are merged.

Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
arXiv:2410.04417.
Differs from the authors' code: attention is computed for the rows of the text alone, in float32 (there for every row of
every layer); batches, padding, grouped-query attention and several images work, each with its own budget and judged by
the text after the last; a stage that may keep everything does (there one token at least goes); densities get no random
noise, ties go to the lowest index; layers are scaled to the model's depth. The paper's count by rank is in no released
code: as there, a table of counts stands in for it. Budgets that are not in it, images of other than 576 tokens, models
with mRoPE, where positions stay original and a merged token stands at its centre, and video are an extension. The later
version that keeps places, corrects for distance and merges nothing is not offered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.blocks.peak_clusters import peak_clusters
from vtprune.blocks.raters import raters
from vtprune.blocks.stages import Pool, between, check_layers, fit_layers, is_index, pools, stages_at
from vtprune.policies.base import check_choices, check_ratio, quirks, register
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens
from vtprune_kernels.merge import merge_tokens

TOKENS, STAGES = 576, (3, 7, 16)
BUDGETS = {
    0: (0, 0, 0),
    64: (66, 30, 17),
    96: (238, 48, 26),
    128: (303, 110, 36),
    192: (300, 200, 110),
    576: (576, 576, 576),
}
"""Published budget of 576 visual tokens -> tokens kept at each stage; the first and the last row frame them."""

COMPAT = ("released-min-drop", "released-tie-order")
_RATERS, _ORDER = "sparsevlm raters", "sparsevlm order"


class Part(NamedTuple):
    """What becomes of the n tokens of a pool.

    rows:  (K,) int64 those that live on, in their new order: kept ones, then the centres of merged ones.
    owner: (n,) int64 which of them each token is averaged into, itself if it is kept, -1 if it is dropped.
    """

    rows: Tensor
    owner: Tensor


@register("sparsevlm")
@dataclass
class SparseVLM:
    """Scores by the attention of raters in the layer before each stage: text tokens more like the image than most.

    keep_ratio:  the publication's budget as a fraction of the visual tokens, in (0, 1]: 192/576, 128/576, 96/576 and
                 64/576 take its tables, others lie between them. It stands for a mean over the layers that leaves out
                 merged tokens and a layer at full length, so the true mean is higher: see the report. None: 192/576.
    n_keeps:     numbers kept at each stage of every image or video, instead of ``keep_ratio``; merged ones come on top.
    layers:      the stages: first decoder layers that see the shorter sequence, counted in a model of ``of`` layers.
    of:          depth that ``layers`` are meant for; they are scaled to the model. None: taken as they are.
    recycled:    fraction of the dropped tokens, the best by score, that are clustered and merged, in [0, 1]; 0: none.
    per_cluster: about how many of them become one token, 1 or more.
    place:       where merged tokens stand: at the "end" of their image, densest first, as published, or each at its
                 "centre". None: the end, on models with mRoPE the centre.
    budget:      "segment" gives every image or video its own share, "prompt" pools them.
    compat:      what the released code does, one or several joined by commas: "released-min-drop" drops a token also
                 where all may stay; "released-tie-order" lets the last of equally dense tokens come first, as it does
                 without its noise, and the two densest are equal wherever two clusters are made.
    """

    keep_ratio: float | None = None
    n_keeps: tuple[int, ...] | None = None
    layers: tuple[int, ...] = STAGES
    of: int | None = 32
    recycled: float = 0.3
    per_cluster: int = 10
    place: Literal["end", "centre"] | None = None
    budget: Literal["segment", "prompt"] = "segment"
    compat: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"text_attention"})
    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        check_choices(self, {"budget": ("segment", "prompt"), "place": ("end", "centre", None)})
        self._quirks = quirks(self.compat, COMPAT)
        self.layers = check_layers(self.layers, self.of)
        if self.keep_ratio is not None:
            check_ratio(self.keep_ratio)
        if self.keep_ratio is not None and self.n_keeps is not None:
            raise ValueError(
                f"give keep_ratio or n_keeps, not both; got keep_ratio={self.keep_ratio!r} and n_keeps={self.n_keeps!r}"
            )
        if self.n_keeps is None and len(self.layers) != len(STAGES):
            raise ValueError(f"the published budgets are for {len(STAGES)} layers, give n_keeps; got {self.layers!r}")
        if self.n_keeps is not None:
            self.n_keeps = _counts(self.n_keeps, self.layers)
        number = isinstance(self.recycled, (int, float)) and not isinstance(self.recycled, bool)
        if not number or not 0 <= self.recycled <= 1:
            raise ValueError(f"recycled is a fraction of the dropped tokens, in [0, 1]; got {self.recycled!r}")
        if not is_index(self.per_cluster, 1):
            raise ValueError(f"per_cluster is an integer of 1 or more; got {self.per_cluster!r}")

    @property
    def sites(self) -> tuple[float, ...]:
        """Before the LLM the raters are chosen; tokens go at the stages."""
        return (BEFORE_LLM, *dict.fromkeys(self.layers))

    def fitted(self, facts: ModelFacts) -> "SparseVLM":
        """The stages at the same fractions of this model's depth; of stages that fall together the last holds."""
        place = self.place or ("end" if facts.line_positions else "centre")
        return replace(self, layers=fit_layers(self.layers, self.of, facts.depth), of=facts.depth, place=place)

    def select(self, tokens: VisualTokens) -> Selection:
        """Before the LLM everything; at a stage the best rows of every pool, and what the best of the rest become."""
        found = pools(tokens, self.budget)
        if tokens.site == BEFORE_LLM:
            tokens.memory[_RATERS] = raters_of(tokens)
            return Selection.all(tokens)
        stage = stages_at(self.layers, tokens.site)[-1]
        counts = [self.count(pool, stage) for pool in found]
        if all(k == pool.size for k, pool in zip(counts, found, strict=True)):
            return Selection.all(tokens)
        score = _score(tokens)
        parts = [self._part(tokens, pool, k, score[pool.rows]) for pool, k in zip(found, counts, strict=True)]
        rows = torch.cat([pool.rows.start + part.rows for pool, part in zip(found, parts, strict=True)])
        owner, before = [], 0
        for part in parts:
            owner.append(torch.where(part.owner < 0, part.owner, part.owner + before))
            before += len(part.rows)
        return (_at_centres if self.place == "centre" else _at_the_end)(tokens, Part(rows, torch.cat(owner)))

    def count(self, pool: Pool, stage: int) -> int:
        """How many of a pool's living tokens a stage keeps as they are, 1 or more."""
        wanted = self.n_keeps[stage] if self.n_keeps is not None else _kept(pool.count, self.keep_ratio, stage)
        most = pool.size - 1 if "released-min-drop" in self._quirks else pool.size
        return max(1, min(wanted, most))

    def _part(self, tokens: VisualTokens, pool: Pool, k: int, score: Tensor) -> Part:
        ranked = score.sort(descending=True, stable=True).indices
        kept, dropped = ranked[:k].sort().values, ranked[k:]
        n_recycled = int(self.recycled * len(dropped)) + 1 if self.recycled and len(dropped) else 0
        rest = dropped[:n_recycled]
        c = min(n_recycled, n_recycled // self.per_cluster + 1)
        ties = "highest" if "released-tie-order" in self._quirks else "lowest"
        centres, label = peak_clusters(tokens.hidden[pool.rows][rest], c, max(1, c), ties)
        owner = torch.full_like(ranked, -1)
        owner[kept] = torch.arange(k, device=owner.device)
        owner[rest] = k + label
        return Part(torch.cat([kept, rest[centres]]), owner)


def raters_of(tokens: VisualTokens) -> Tensor:
    """(R,) int64 rows of ``tokens.text``: raters among the text after the last image; any text where none follows."""
    after = (tokens.text_position > int(tokens.position[-1])).nonzero().flatten()
    if not len(after):
        return torch.arange(len(tokens.text), device=tokens.hidden.device)
    return after[raters(tokens.hidden, tokens.text[after])]


def _score(tokens: VisualTokens) -> Tensor:
    """(N,) float32: attention from the raters, mean over heads and raters; 0 in a prompt without text."""
    raters = tokens.memory[_RATERS].to(tokens.hidden.device)
    if not len(raters):
        return torch.zeros(len(tokens), device=tokens.hidden.device)
    return tokens.signals["text_attention"][raters].mean(0)


def _at_centres(tokens: VisualTokens, part: Part) -> Selection:
    keep, order = part.rows.sort()
    merge = order.argsort()[part.owner.clamp(min=0)]
    return Selection(keep, merge.masked_fill(part.owner < 0, -1))


def _at_the_end(tokens: VisualTokens, part: Part) -> Selection:
    """The new tokens in their own order. Which rows they came from is remembered, so that those are reported."""
    came_from = tokens.memory.get(_ORDER)
    rows = part.rows if came_from is None else came_from.to(part.rows.device)[part.rows]
    keep = rows.sort().values
    tokens.memory[_ORDER] = torch.searchsorted(keep, rows)
    return Selection(keep, values=merge_tokens(tokens.hidden, part.owner, None, len(keep)))


def _kept(n: int, keep_ratio: float | None, stage: int) -> int:
    """What a stage keeps of ``n`` tokens: the tables by a straight line between budgets, half rounded to even."""
    table = {budget: kept[stage] for budget, kept in BUDGETS.items()}
    return round(between(table, 192 if keep_ratio is None else keep_ratio * TOKENS) * n / TOKENS)


def _counts(n_keeps: object, layers: tuple[int, ...]) -> tuple[int, ...]:
    listed = isinstance(n_keeps, Sequence) and not isinstance(n_keeps, str) and len(n_keeps) == len(layers)
    if not listed or not all(is_index(n, 1) for n in n_keeps):
        raise ValueError(f"n_keeps has an integer of 1 or more for each of layers={layers}; got {n_keeps!r}")
    return tuple(n_keeps)
