"""VATP: attention times the size of the value it meets decides what the cache keeps.

Guo et al., "Attention Score is not All You Need for Token Importance Indicator in KV Cache Reduction: Value Also
Matters", EMNLP 2024, arXiv:2406.12335, section 4. Differs from the publication: visual tokens alone compete, once, when
the prompt has been read; a key head of several query heads takes the mean of their attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.blocks.probe_rows import ALL, Probes
from vtprune.blocks.stages import is_index
from vtprune.cached import HEADS, CachedLayer
from vtprune.policies.base import check_choices, register
from vtprune.policies.cache_base import WEIGHINGS, CachePolicy, weighed
from vtprune.policies.checks import check_index


@register("vatp")
@dataclass
class VATP(CachePolicy):
    """Scores tokens by the attention they got from the prompt's queries, weighed by their values.

    value_weighting: "l1_v", as published; "none" is the accumulated attention of H2O; or "l2_v", "l1_WoV" (the value
                     after the output projection), "caote" and "caote_fast", see the policy "caote".
    queries: None: all queries of the prompt; a number: the last so many alone (Scissorhands has 400).
    sink_len: how many first tokens of the prompt stay whatever they score: they draw attention and have small values.
    heads:   "kv": every key head keeps its own tokens, as published; "all": one set for a layer.
    """

    value_weighting: str = "l1_v"
    queries: int | None = None
    sink_len: int = 20
    heads: str = "kv"

    def __post_init__(self):
        super().__post_init__()
        check_index("queries", self.queries, optional=True)
        check_choices(self, {"heads": HEADS, "value_weighting": WEIGHINGS})
        if not is_index(self.sink_len, 0):
            raise ValueError(f"sink_len is a number of first tokens, 0 or more; got {self.sink_len!r}")

    def score(self, layer: CachedLayer) -> Tensor:
        probes = ALL if self.queries is None else Probes(self.queries, 0)
        score = weighed(layer, layer.received("kv", probes), self.value_weighting).clone()
        if self.sink_len:
            score[:, : self.sink_len] = float("inf")
        score = score[:, layer.slots]
        return score.mean(0) if self.heads == "all" else score
