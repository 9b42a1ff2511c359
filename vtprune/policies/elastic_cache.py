"""Elastic Cache: what is evicted from the cache is averaged into the nearest token that stays.

Liu et al., "Efficient Inference of Vision Instruction-Following Models with Elastic Cache", ECCV 2024,
arXiv:2407.18121, section 3. As the paper says it, not as the released code does, which ranks by a sorting order taken
for ranks. Differs from the publication: visual tokens alone compete; keys are not averaged by default; nothing is
evicted while tokens are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from vtprune.blocks.probe_rows import ALL, Probes
from vtprune.cache_scores.elastic import Merging, merge_anchors, nearest_anchor
from vtprune.cached import CachedLayer, CachedPrompt, Eviction
from vtprune.policies.base import check_choices, register
from vtprune.policies.cache_base import WEIGHINGS, CachePolicy, weighed
from vtprune.policies.checks import check_index


@register("elastic_cache")
@dataclass
class ElasticCache(CachePolicy):
    """Keeps in every layer the tokens that got most attention of the prompt; the others join the nearest by place.

    merge:   "value_only": values are averaged and keys stay, as keys that were rotated to different places have no
             mean; "nearest_anchor": both, as published; "none": what is evicted is gone.
    queries: None: all queries of the prompt vote, as published; a number: the last so many, and as many of the others,
             drawn by the prompt.
    value_weighting: by what of the values the votes are multiplied, as with "vatp": "none", "l1_v", "caote" and others.
    """

    merge: str = "value_only"
    queries: int | None = None
    value_weighting: str = "none"

    def __post_init__(self):
        super().__post_init__()
        check_index("queries", self.queries, optional=True)
        check_choices(self, {"merge": (*get_args(Merging), "none"), "value_weighting": WEIGHINGS})

    def score(self, layer: CachedLayer) -> Tensor:
        probes = ALL if self.queries is None else Probes(self.queries, self.queries)
        return weighed(layer, layer.received("all", probes), self.value_weighting)[0, layer.slots]

    def eviction(self, prompt: CachedPrompt, i: int, keep: Tensor) -> Eviction:
        slots = prompt.layers[i].slots
        if self.merge == "none" or len(keep) == len(slots):
            return Eviction(keep)
        keys, values = (part[:, slots.to(part.device)] for part in prompt.stored(i))
        # places in the prompt as it was, which are nearer than those of what pruning left
        owner = nearest_anchor(keep, len(slots), position=prompt.layers[i].rows)
        layer = prompt.layers[i]
        if layer.sinks is not None and layer.sink_mode == "drop":
            gone = layer.sinks.clone()
            gone[keep] = False
            owner = owner.masked_fill(gone, -1)
        merged_keys, merged_values = merge_anchors(keys, values, keep, owner, self.merge)
        return Eviction(keep, merged_keys if self.merge == "nearest_anchor" else None, merged_values)
