"""PrefixKV: layers keep as many keys and values as it takes to hold the same share of their attention.

Wang et al., "PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need for Efficient
Generation", NeurIPS 2025, arXiv:2412.03409, section 3. Differs from the publication: visual tokens alone compete,
their positions go on where the prompt ends, and nothing is evicted while tokens are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from torch import Tensor

from vtprune.blocks.probe_rows import ALL, Probes
from vtprune.cache_profile import CacheProfile
from vtprune.cache_scores.prefix import PUBLISHED_TOLERANCE, counts_of, prefix_drops
from vtprune.cached import CachedLayer, CachedPrompt
from vtprune.policies.base import check_choices, register
from vtprune.policies.cache_base import WEIGHINGS, CachePolicy, weighed
from vtprune.policies.checks import check_index
from vtprune.tokens import ModelFacts


@register("prefixkv")
@dataclass
class PrefixKV(CachePolicy):
    """Scores tokens by the attention of all queries of the prompt, and finds one threshold for all layers.

    queries: None: all queries of the prompt vote, as published; a number: the last so many, and as many of the others,
             drawn by the prompt, which is all that long prompts can afford.
    value_weighting: by what of the values the votes are multiplied, as with "vatp": "none", "l1_v", "caote" and others.
    search:  "exact": the layers drop together what was asked for. "published": the publication's bisection, which ends
             a few tokens off and rounds down.
    profile: instead of a search for every prompt, what each layer dropped on average in others: a file that
             ``vtprune cache-profile`` made, or a ``vtprune.CacheProfile``. It has a keep_ratio of its own.
    """

    queries: int | None = None
    value_weighting: str = "none"
    search: str = "exact"
    profile: str | PathLike | CacheProfile | None = None

    def __post_init__(self):
        if self.profile is not None:
            said = "a profile says how much each layer keeps; give it, or keep_ratio or n_keep, not both"
            if self.n_keep is not None:
                raise ValueError(said)
            self.profile = self.profile if isinstance(self.profile, CacheProfile) else CacheProfile.load(self.profile)
            # copies of a policy are given what it found
            if self.keep_ratio not in (None, self.profile.keep_ratio):
                raise ValueError(said)
            self.keep_ratio = self.profile.keep_ratio
        super().__post_init__()
        check_choices(self, {"search": ("exact", "published"), "value_weighting": WEIGHINGS})
        check_index("queries", self.queries, optional=True)

    def fitted(self, facts: ModelFacts) -> PrefixKV:
        """Itself, after making sure that a profile is of this model."""
        if self.profile is not None:
            self.profile.check(facts)
        return self

    def score(self, layer: CachedLayer) -> Tensor:
        """(N,) the attention that every visual token got, mean over heads, summed over queries."""
        probes = ALL if self.queries is None else Probes(self.queries, self.queries)
        return weighed(layer, layer.received("all", probes), self.value_weighting)[0, layer.slots]

    def counts(self, prompt: CachedPrompt) -> Sequence[int]:
        sizes = [len(layer) for layer in prompt.layers]
        if self.profile is not None:
            dropped = counts_of(self.profile.of(layer.index for layer in prompt.layers), sizes)
        elif min(sizes) == 0:
            return super().counts(prompt)
        else:
            tolerance = 0 if self.search == "exact" else PUBLISHED_TOLERANCE
            dropped = prefix_drops(prompt.notes, self.total(prompt) / sum(sizes), tolerance=tolerance).counts
        return [max(1, n - drop) for n, drop in zip(sizes, dropped, strict=True)]
