"""Base of policies that evict visual keys and values from the cache when a prompt has been read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from vtprune.cache_scores.keep import keep_best
from vtprune.cache_scores.value_weight import Weighing, weigh
from vtprune.cached import CachedLayer, CachedPrompt, CachedSlots, Eviction, Evictions
from vtprune.policies.base import check_how_many

WEIGHINGS = get_args(Weighing)
"""What ``value_weighting`` may be."""


@dataclass
class CachePolicy:
    """Gives every visual token in the cache of every layer a score: write ``score`` and you are done.

    The prompt is read as it is, so nothing is saved there; what is decoded after it reads fewer keys and values. Text
    is never evicted, nor are layers that see a window only. Tokens keep their positions.

    keep_ratio: fraction of the prompt's visual tokens, before any pruning, whose keys and values are KEPT, mean over
                the layers, in (0, 1]; 0.5 if neither it nor ``n_keep`` is given. Behind a policy that prunes the prompt
                it is still of the whole prompt, so it is what both keep together.
    n_keep:     mean number of visual tokens kept in a layer, instead of ``keep_ratio``.
    """

    keep_ratio: float | None = None
    n_keep: int | None = None

    needs: ClassVar[frozenset[str]] = frozenset()
    sites: ClassVar[tuple[float, ...]] = ()
    keep_ratio_is: ClassVar[str] = "cache"
    obeys_sinks: ClassVar[bool] = True
    """Whether ``wrap(..., sinks=...)`` decides of sinks in its ranking."""

    def __post_init__(self):
        check_how_many(self.keep_ratio, self.n_keep)
        if self.keep_ratio is None and self.n_keep is None:
            self.keep_ratio = 0.5

    def total(self, prompt: CachedPrompt) -> int:
        """How many visual tokens all layers together keep; of each layer one at least."""
        each = self.n_keep if self.n_keep is not None else prompt.visual * self.keep_ratio
        wanted = round(each * len(prompt.layers))
        return min(sum(map(len, prompt.layers)), max(len(prompt.layers), wanted))

    def score(self, layer: CachedLayer) -> Tensor:
        """(N,) or, to keep other tokens in every key head, (H_kv, N) float of the visual tokens; higher is kept."""
        raise NotImplementedError(f"{type(self).__name__} must define score(layer) -> (N,) or (H_kv, N)")

    def watch(self, layer: CachedLayer) -> Tensor:
        """What is noted of a layer: its scores."""
        return self.score(layer)

    def counts(self, prompt: CachedPrompt) -> Sequence[int]:
        """How many visual tokens each layer keeps: as equally many as what the layers hold allows."""
        return level([len(layer) for layer in prompt.layers], self.total(prompt))

    def eviction(self, prompt: CachedPrompt, i: int, keep: Tensor) -> Eviction:
        """The answer for the i-th layer; policies that merge what goes say more."""
        return Eviction(keep)

    def evict(self, prompt: CachedPrompt) -> Evictions:
        """The best of every layer, in prompt order."""
        counts, sizes = list(self.counts(prompt)), [len(layer) for layer in prompt.layers]
        kept = [self._best(*one) for one in zip(prompt.layers, prompt.notes, counts, strict=True)]
        answers = [self.eviction(prompt, i, keep) for i, keep in enumerate(kept)]
        return Evictions(answers, "nothing had to be evicted: so little was left of the prompt" * (counts == sizes))

    @staticmethod
    def _best(layer: CachedSlots, score: Tensor | None, count: int) -> Tensor:
        return layer.rows[:0] if score is None else keep_best(layer.told(score), count)


def weighed(layer: CachedLayer, attention: Tensor, how: str) -> Tensor:
    """(G, S) attention (G, S) that keys got, weighed by their values; see ``vtprune.cache_scores.value_weight``."""
    if how == "none":
        return attention
    values = layer.values
    weight = layer.output_weight if how == "l1_WoV" else None
    each = weigh(attention.expand(len(values), -1), values, how, w_o=weight)
    # one row for all heads, or for what latent attention stores, whose values are apart
    return each if len(attention) == len(values) else each.mean(0, keepdim=True)


def level(sizes: Sequence[int], total: int) -> list[int]:
    """Shares of ``total``, at most the sum of the sizes, that are as equal as the sizes allow."""
    shares, left = [0] * len(sizes), total
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for done, i in enumerate(order):
        # the smallest ones take what they can, the others share the rest
        shares[i] = min(sizes[i], left // (len(sizes) - done))
        left -= shares[i]
    return shares
