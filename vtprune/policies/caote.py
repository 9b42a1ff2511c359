"""CAOTE: what goes from the cache is what changes the output of attention least.

Goel et al., "CAOTE: KV Cache Selection for LLMs via Attention Output Error-Based Token Eviction", 2025,
arXiv:2504.14051, section 3. Differs from the publication: visual tokens alone compete, all that go do so at once, for
which the change is not the sum of what each makes; and of several rows and heads the mean counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.blocks.probe_rows import Probes
from vtprune.cache_scores.value_weight import weigh
from vtprune.cached import HEADS, CachedLayer
from vtprune.policies.base import check_choices, register
from vtprune.policies.cache_base import CachePolicy
from vtprune.policies.checks import check_index


@register("caote")
@dataclass
class CAOTE(CachePolicy):
    """Scores tokens by how much the attention output of the prompt's last queries would change without them.

    queries: how many of the last queries; 1 as with TOVA.
    fast:    the mean of all values stands for the output.
    heads:   "kv": every key head keeps its own tokens, as published; "all": one set for a layer.
    """

    queries: int = 8
    fast: bool = False
    heads: str = "kv"

    def __post_init__(self):
        super().__post_init__()
        check_index("queries", self.queries)
        check_choices(self, {"heads": HEADS, "fast": (True, False)})

    def score(self, layer: CachedLayer) -> Tensor:
        values, rows = layer.values, layer.attention(Probes(self.queries, 0))
        rows = rows.reshape(len(values), -1, rows.shape[-1])
        score = weigh(rows, values, "caote_fast" if self.fast else "caote")[:, layer.slots]
        return score.mean(0) if self.heads == "all" or layer.shared else score
