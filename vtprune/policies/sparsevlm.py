"""SparseVLM: text tokens that the image points to judge its tokens, in stages; the best of the dropped are merged.

Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
arXiv:2410.04417.
Differs from the authors' code: attention is computed for the rows of the text alone, in float32 (there for every row of
every layer); batches, padding, grouped-query attention and several images work, each with its own budget and judged by
the text after the last; a stage that may keep everything does (there one token at least goes); densities get no random
noise, ties go to the lowest index; layers are scaled to the model's depth. The paper's count by rank is in no released
code: as there, a table of counts stands in for it. Budgets that are not in it, images of other than 576 tokens, models
with mRoPE, where positions stay original and a merged token stands at its centre, and video are an extension.
The released code's later version, SparseVLM+ (``version="plus"``), keeps places, merges nothing, divides attention by
what distance alone makes of it (rotated ones times rotated ones) and counts the 14 heads that then look most at the
image. There that number turns negative far away, and the score with it; here it is at least ``least_prior``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.blocks.forecast import Forecast, staged
from vtprune.blocks.peak_clusters import peak_clusters
from vtprune.blocks.raters import raters
from vtprune.blocks.stages import Pool, between, check_layers, fit_layers, is_index, pool_sizes, pools, stages_at
from vtprune.policies.base import check_choices, check_ratio, quirks, register
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens
from vtprune_kernels.merge import merge_tokens

TOKENS, STAGES, HEADS = 576, (3, 7, 16), 14
_FRAME = {0: (0, 0, 0), TOKENS: (TOKENS, TOKENS, TOKENS)}
BUDGETS = {
    "1": {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110), **_FRAME},
    "plus": {64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118), **_FRAME},
}
"""By version: published budget of 576 visual tokens -> tokens kept at each stage, framed by nothing and everything."""

COMPAT = ("released-min-drop", "released-tie-order", "released-plus")
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
    version:     "1", also v1.5, or "plus", which drops without merging and keeps positions.
    n_keeps:     numbers kept at each stage of every image or video, instead of ``keep_ratio``; merged ones come on top.
    layers:      the stages: first decoder layers that see the shorter sequence, counted in a model of ``of`` layers.
    of:          depth that ``layers`` are meant for; they are scaled to the model. None: taken as they are.
    recycled:    fraction of the dropped tokens, the best by score, that are clustered and merged, in [0, 1]; 0: none.
                 None: 0.3, of version "plus" none.
    per_cluster: about how many of them become one token, 1 or more.
    place:       where merged tokens stand: at the "end" of their image, densest first, as published, or each at its
                 "centre". None: the end, on models with mRoPE the centre.
    least_prior: attention in version "plus" is divided by no less than this, above 0.
    budget:      "segment" gives every image or video its own share, "prompt" pools them.
    compat:      what the released code does, one or several joined by commas: "released-min-drop" drops a token also
                 where all may stay; "released-tie-order" lets the last of equally dense tokens come first, as it does
                 without its noise, and the two densest are equal wherever two clusters are made; "released-plus", of
                 that version, sets no ``least_prior``.
    """

    keep_ratio: float | None = None
    version: Literal["1", "plus"] = "1"
    n_keeps: tuple[int, ...] | None = None
    layers: tuple[int, ...] = STAGES
    of: int | None = 32
    recycled: float | None = None
    per_cluster: int = 10
    place: Literal["end", "centre"] | None = None
    least_prior: float = 1.0
    budget: Literal["segment", "prompt"] = "segment"
    compat: str = ""

    keep_ratio_is: ClassVar[str] = "published"

    def __post_init__(self):
        versions = {"version": ("1", "plus")}
        check_choices(self, {"budget": ("segment", "prompt"), "place": ("end", "centre", None), **versions})
        self._quirks = quirks(self.compat, COMPAT)
        if "released-plus" in self._quirks and not self._plus:
            raise ValueError(f"compat='released-plus' goes with version='plus'; got version={self.version!r}")
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
        self._check_recycled()
        number = isinstance(self.least_prior, (int, float)) and not isinstance(self.least_prior, bool)
        if not number or not 0 < self.least_prior < float("inf"):
            raise ValueError(f"least_prior is a finite number above 0; got {self.least_prior!r}")

    def _check_recycled(self) -> None:
        if self.recycled is None:
            self.recycled = 0.0 if self._plus else 0.3
        number = isinstance(self.recycled, (int, float)) and not isinstance(self.recycled, bool)
        if not number or not 0 <= self.recycled <= 1:
            raise ValueError(f"recycled is a fraction of the dropped tokens, in [0, 1]; got {self.recycled!r}")
        if self._plus and self.recycled:
            raise ValueError(f"version='plus' merges nothing, so recycled is 0 or None; got {self.recycled!r}")
        if not is_index(self.per_cluster, 1):
            raise ValueError(f"per_cluster is an integer of 1 or more; got {self.per_cluster!r}")

    @property
    def _plus(self) -> bool:
        return self.version == "plus"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"text_attention_heads", "text_rotary"} if self._plus else {"text_attention"})

    @property
    def positions(self) -> str:
        return "original" if self._plus else "compact"

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
        score = self._score(tokens)
        parts = [self._part(tokens, pool, k, score[pool.rows]) for pool, k in zip(found, counts, strict=True)]
        rows = torch.cat([pool.rows.start + part.rows for pool, part in zip(found, parts, strict=True)])
        if self._plus:
            return Selection(rows)
        owner, before = [], 0
        for part in parts:
            owner.append(torch.where(part.owner < 0, part.owner, part.owner + before))
            before += len(part.rows)
        return (_at_centres if self.place == "centre" else _at_the_end)(tokens, Part(rows, torch.cat(owner)))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """Nothing goes before the LLM; at the stages what is kept and what the merged ones become."""

        def kept(policy: SparseVLM, site: float, living: int, size: int) -> int:
            k = policy.count(Pool(slice(0, living), size, -1), stages_at(policy.layers, site)[-1])
            return k + policy.clusters(living - k)[1]

        sites = tuple(dict.fromkeys(self.layers))
        return staged(self, sites, pool_sizes(tokens, self.budget), kept)

    def clusters(self, dropped: int) -> tuple[int, int]:
        """How many of the tokens that a pool drops are merged, and into how many."""
        n = int(self.recycled * dropped) + 1 if self.recycled and dropped else 0
        return n, min(n, n // self.per_cluster + 1)

    def count(self, pool: Pool, stage: int) -> int:
        """How many of a pool's living tokens a stage keeps as they are, 1 or more."""
        if self.n_keeps is not None:
            wanted = self.n_keeps[stage]
        else:
            wanted = _kept(BUDGETS[self.version], pool.count, self.keep_ratio, stage)
        most = pool.size - 1 if "released-min-drop" in self._quirks else pool.size
        return max(1, min(wanted, most))

    def _score(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32: attention from the raters, mean over heads and raters; 0 in a prompt without text."""
        chosen = tokens.memory[_RATERS].to(tokens.hidden.device)
        if not len(chosen):
            return torch.zeros(len(tokens), device=tokens.hidden.device)
        if not self._plus:
            return tokens.signals["text_attention"][chosen].mean(0)
        prior = tokens.signals["text_rotary"][chosen]
        prior = prior if "released-plus" in self._quirks else prior.clamp(min=self.least_prior)
        return by_heads(tokens.signals["text_attention_heads"][:, chosen], prior)

    def _part(self, tokens: VisualTokens, pool: Pool, k: int, score: Tensor) -> Part:
        ranked = score.sort(descending=True, stable=True).indices
        kept, dropped = ranked[:k].sort().values, ranked[k:]
        n_recycled, c = self.clusters(len(dropped))
        rest = dropped[:n_recycled]
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


def by_heads(attention: Tensor, prior: Tensor) -> Tensor:
    """(N,): attention / prior, mean over the rows and over the ``HEADS`` heads that pay most of it.

    attention: (H, R, N) to visual tokens. prior: (R, N), not 0.
    """
    paid = (attention / prior).mean(1)
    heads = paid.sum(1).sort(descending=True, stable=True).indices[:HEADS]
    return paid[heads].mean(0)


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


def _kept(budgets: Mapping[int, Sequence[int]], n: int, keep_ratio: float | None, stage: int) -> int:
    """What a stage keeps of ``n`` tokens: the tables by a straight line between budgets, half rounded to even."""
    table = {budget: kept[stage] for budget, kept in budgets.items()}
    return round(between(table, 192 if keep_ratio is None else keep_ratio * TOKENS) * n / TOKENS)


def _counts(n_keeps: object, layers: tuple[int, ...]) -> tuple[int, ...]:
    listed = isinstance(n_keeps, Sequence) and not isinstance(n_keeps, str) and len(n_keeps) == len(layers)
    if not listed or not all(is_index(n, 1) for n in n_keeps):
        raise ValueError(f"n_keeps has an integer of 1 or more for each of layers={layers}; got {n_keeps!r}")
    return tuple(n_keeps)
