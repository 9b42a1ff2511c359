"""PACT: inside the LLM, drop the tokens that the average visual query ignores and merge the rest by density clustering.

Dhouib et al., "PACT: Pruning and Clustering-Based Token Reduction for Faster Visual Language Models", CVPR 2025,
arXiv:2504.08966.
Differs from the authors' code: batches and padding work; every image or video is pruned and clustered by itself (there
all visual tokens together); exactly the fraction asked for survives pruning (there one token less); densities are
computed in float32, ties go to the lowest index; the layer is scaled to the model's depth. Budgets by ``keep_ratio`` or
``n_keep`` are an extension: the widest cutoff that leaves so many is looked for.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.bounded_peaks import Bounded, nearest_centre
from vtprune.blocks.forecast import Forecast, one_cut
from vtprune.blocks.stages import check_layers, fit_layers, is_index, pool_sizes
from vtprune.policies.base import check_choices, check_ratio, quirks, register, top_rows
from vtprune.tokens import ModelFacts, Selection, VisualTokens

COMPAT = ("released-strict-threshold",)
NOT_PROPORTIONAL = "merged tokens count once in attention; as published the logarithm of their number is added to it"
_QUERIES, _CONTENT, _KEYS = "unrotated_queries:peek", "unrotated_keys:peek", "keys:peek"


@register("pact")
@dataclass
class PACT:
    """Scores by attention from the mean visual query, without positions, times the length of the hidden state.

    keep_ratio: fraction of visual tokens KEPT, merged ones counted once, in (0, 1]; the cutoff follows. None: the
                cutoff decides, and with it what the image shows.
    n_keep:     absolute number of visual tokens kept, instead of ``keep_ratio``.
    survivors:  fraction of the tokens that are clustered, in (0, 1], rounded down; the others are pruned. No less than
                what ``keep_ratio`` or ``n_keep`` keep.
    cutoff:     distance, 1 - cosine of keys, within which a token opens no cluster of its own, in [0, 2].
    rescue:     a pruned token is merged after all where a centre is within so many cutoffs, 0 or more.
    layer:      the first decoder layer that sees the shorter sequence, counted in a model of ``of`` layers.
    of:         depth that ``layer`` is meant for; it is scaled to the model. None: taken as it is.
    budget:     "segment" prunes and clusters every image or video by itself, "prompt" all of a prompt, as published.
    proportional: merged tokens stand for as many as they are in the attention of all later layers, as published. That
                needs a mask that is added to the scores: with FlashAttention it is refused, and False counts them once.
    compat:     what the released code does: "released-strict-threshold" prunes the last survivor too.
    """

    keep_ratio: float | None = None
    n_keep: int | None = None
    survivors: float = 0.55
    cutoff: float = 0.21
    rescue: float = 1.5
    layer: int = 4
    of: int | None = 28
    budget: Literal["segment", "prompt"] = "segment"
    proportional: bool = True
    compat: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({_QUERIES, _CONTENT, _KEYS})

    def __post_init__(self):
        check_choices(self, {"budget": ("segment", "prompt")})
        self._quirks = quirks(self.compat, COMPAT)
        if self.keep_ratio is not None and self.n_keep is not None:
            raise ValueError(
                f"give keep_ratio or n_keep, not both; got keep_ratio={self.keep_ratio!r} and n_keep={self.n_keep!r}"
            )
        if self.keep_ratio is not None:
            check_ratio(self.keep_ratio)
        if self.n_keep is not None and not is_index(self.n_keep, 1):
            raise ValueError(f"n_keep is the number of visual tokens kept, 1 or more; got {self.n_keep!r}")
        if not _number(self.survivors) or not 0 < self.survivors <= 1:
            raise ValueError(f"survivors is the fraction that is clustered, in (0, 1]; got {self.survivors!r}")
        if not _number(self.cutoff) or not 0 <= self.cutoff <= 2:
            raise ValueError(f"cutoff is a distance, in [0, 2]; got {self.cutoff!r}")
        if not _number(self.rescue) or not 0 <= self.rescue < float("inf"):
            raise ValueError(f"rescue is a number of cutoffs, 0 or more; got {self.rescue!r}")
        if not isinstance(self.proportional, bool):
            raise ValueError(f"proportional is True or False; got {self.proportional!r}")
        check_layers((self.layer,), self.of)

    @property
    def sites(self) -> tuple[int, ...]:
        return (self.layer,)

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.proportional else (NOT_PROPORTIONAL,)

    def fitted(self, facts: ModelFacts) -> "PACT":
        """At the same fraction of this model's depth."""
        (layer,) = fit_layers((self.layer,), self.of, facts.depth)
        return replace(self, layer=layer, of=facts.depth)

    def count(self, n: int) -> int | None:
        """How many of ``n`` tokens to keep: half rounds to even, 1 to n; None where the cutoff decides."""
        if self.keep_ratio is None and self.n_keep is None:
            return None
        wanted = self.n_keep if self.n_keep is not None else round(n * self.keep_ratio)
        return min(n, max(1, wanted))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        return one_cut(self, tokens.site, pool_sizes(tokens, self.budget))

    def select(self, tokens: VisualTokens) -> Selection:
        """The centres of clusters, and which of them every token is merged into."""
        spans = [segment.span for segment in tokens.segments if len(segment)]
        spans = [slice(0, len(tokens))] if self.budget == "prompt" else spans
        if all(self.count(span.stop - span.start) == span.stop - span.start for span in spans):
            return Selection.all(tokens)
        merge = torch.full((len(tokens),), -1, device=tokens.hidden.device)
        keep, before = [], 0
        for span in spans:
            centres, owner = self._clusters(tokens, span)
            merge[span] = torch.where(owner < 0, owner, owner + before)
            keep.append(span.start + centres)
            before += len(centres)
        sizes = self._sizes(tokens, merge, before) if self.proportional else None
        return Selection(torch.cat(keep), merge, stands_for=sizes)

    def _sizes(self, tokens: VisualTokens, merge: Tensor, k: int) -> Tensor:
        """(k,) how many tokens were merged into each centre."""
        ones = torch.ones(len(merge), device=merge.device) if tokens.stands_for is None else tokens.stands_for
        # row 0 catches what is dropped
        return ones.new_zeros(k + 1).index_add_(0, merge + 1, ones)[1:]

    def _clusters(self, tokens: VisualTokens, span: slice) -> tuple[Tensor, Tensor]:
        """The centres (K,) among the rows of ``span``, ascending, and the owner of each row, -1 where it is pruned."""
        n = span.stop - span.start
        k = self.count(n)
        alive = self._survivors(tokens, span, max(1, int(self.survivors * n), k or 1))
        keys = tokens.signals[_KEYS][:, span].transpose(0, 1).flatten(1)
        found, cutoff = Bounded(keys[alive]), self.cutoff
        if k is None:
            opened = found.centres(cutoff)
        else:
            opened, cutoff = found.exactly(k)
        centres = alive[opened].sort().values
        owner, far = nearest_centre(keys, keys[centres])
        pruned = torch.ones(n, dtype=torch.bool, device=alive.device)
        pruned[alive] = False
        owner[pruned & ~(far <= self.rescue * cutoff)] = -1
        owner[centres] = torch.arange(len(centres), device=owner.device)
        return centres, owner

    def _survivors(self, tokens: VisualTokens, span: slice, k: int) -> Tensor:
        """(k,) the rows of ``span``, ascending, that are not pruned."""
        queries, keys = (tokens.signals[name][:, span] for name in (_QUERIES, _CONTENT))
        score = importance(queries, keys, tokens.hidden[span])
        if "released-strict-threshold" not in self._quirks or k == len(score):
            return top_rows(score, k)
        above = (score > score.sort(descending=True).values[k - 1]).nonzero().flatten()
        return above if len(above) else top_rows(score, 1)


@torch.no_grad()
def importance(queries: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
    """(n,) float32: what the mean query pays to each key, mean over heads, times the length of the hidden state.

    queries: (H, n, d). keys: (H_kv, n, d), each for H / H_kv heads in turn. hidden: (n, D).
    """
    mean = queries.float().mean(1).unflatten(0, (len(keys), -1))  # (H_kv, H / H_kv, d)
    logits = mean @ keys.float().transpose(1, 2) * keys.shape[-1] ** -0.5
    return logits.softmax(-1).flatten(0, 1).mean(0) * hidden.float().norm(dim=-1)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
