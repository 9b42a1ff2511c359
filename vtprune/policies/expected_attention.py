"""Expected Attention: kept is what queries to come will look at, if they are like those of the prompt.

Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
2025, arXiv:2510.00636, section 3. Differs from the publication: visual tokens alone compete; and where positions have
three coordinates, queries to come are rotated to those of text, behind the largest of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.blocks.stages import is_index
from vtprune.cache_scores.expected_attention import N_FUTURE, N_SINK, expected_attention
from vtprune.cached import HEADS, CachedLayer
from vtprune.policies.base import check_choices, register
from vtprune.policies.cache_base import CachePolicy
from vtprune.policies.checks import check_index


@register("expected_attention")
@dataclass
class ExpectedAttention(CachePolicy):
    """Scores tokens in closed form, by the mean and covariance of the prompt's queries; no row of attention is made.

    n_future:   over how many places behind the prompt the rotation of queries is averaged.
    n_sink:     how many first tokens of the prompt are left out of the statistics.
    covariance: whether the queries' covariance counts, and not their mean alone.
    value_norm: whether scores are multiplied by the size of the values.
    heads:      "kv": every key head keeps its own tokens, as published; "all": one set for a layer.
    """

    n_future: int = N_FUTURE
    n_sink: int = N_SINK
    covariance: bool = True
    value_norm: bool = True
    heads: str = "kv"

    def __post_init__(self):
        super().__post_init__()
        check_index("n_future", self.n_future)
        check_choices(self, {"heads": HEADS, "covariance": (True, False), "value_norm": (True, False)})
        if not is_index(self.n_sink, 0):
            raise ValueError(f"n_sink is a number of first tokens, 0 or more; got {self.n_sink!r}")

    def score(self, layer: CachedLayer) -> Tensor:
        queries, keys = layer.queries_ahead(self.n_future), layer.keys
        now = queries.shape[1]
        score = expected_attention(
            queries,
            keys,
            layer.values if self.value_norm else None,
            scale=layer.scale,
            n_sink=self.n_sink,
            # of those of this forward, which may be a later turn
            skip=min(max(0, self.n_sink - (keys.shape[1] - now)), now - 1),
            covariance=self.covariance,
        )[:, layer.slots]
        return score.mean(0) if self.heads == "all" or layer.shared else score
