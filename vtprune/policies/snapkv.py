"""SnapKV: what the end of the prompt looks at is kept, key head by key head.

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv:2404.14469, section 4.
Differs from the publication: visual tokens alone compete, and where text follows the last of them, the window does not
reach beyond it, so that the question asks and not the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.blocks.probe_rows import Probes
from vtprune.cache_scores.attention_scores import check_pool, smoothed
from vtprune.cached import HEADS, CachedLayer
from vtprune.policies.base import check_choices, register
from vtprune.policies.cache_base import WEIGHINGS, CachePolicy, weighed
from vtprune.policies.checks import check_index


@register("snapkv")
@dataclass
class SnapKV(CachePolicy):
    """Scores tokens by the mean attention of the prompt's last queries, smoothed over neighbours.

    window: how many of the last queries vote, at most.
    pool:   how many neighbours a score is the mean of, odd; 1 for none.
    value_weighting: by what of the values the votes are multiplied, as with "vatp": "none", "l1_v", "caote" and others.
    heads:  "kv": every key head keeps its own tokens, as published; "all": one set for a layer.
    """

    window: int = 64
    pool: int = 5
    value_weighting: str = "none"
    heads: str = "kv"

    def __post_init__(self):
        super().__post_init__()
        check_index("window", self.window)
        check_choices(self, {"heads": HEADS, "value_weighting": WEIGHINGS})
        check_pool(self.pool)

    def score(self, layer: CachedLayer) -> Tensor:
        n = layer.keys.shape[1]
        behind = n - 1 - int(layer.slots[-1])
        window = min(self.window, behind) if behind else min(self.window, n)
        mean = weighed(layer, layer.received(self.heads, Probes(window, 0)) / window, self.value_weighting)
        pooled = smoothed(mean[:, : n - window] if behind else mean, self.pool)
        score = pooled[:, layer.slots]
        return score[0] if self.heads == "all" else score
