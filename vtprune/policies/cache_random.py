"""Evicts visual keys and values by lot: what every other policy of the cache has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtprune.cached import CachedLayer, CachedPrompt, Evictions
from vtprune.policies.base import register
from vtprune.policies.cache_base import CachePolicy


@register("cache_random")
@dataclass
class CacheRandom(CachePolicy):
    """Keeps other tokens in every layer; the same prompt keeps the same ones in every batch.

    seed: another one, another lot.
    """

    seed: int = 0

    obeys_sinks: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed is an integer; got {self.seed!r}")

    def score(self, layer: CachedLayer) -> Tensor:
        return torch.zeros(len(layer))

    def evict(self, prompt: CachedPrompt) -> Evictions:
        lot = torch.Generator().manual_seed(prompt.seed + self.seed)
        drawn = [torch.rand(len(layer), generator=lot) if len(layer) else None for layer in prompt.layers]
        for i, layer in enumerate(prompt.layers):
            prompt.notes[i] = None if drawn[i] is None else drawn[i].to(layer.slots.device)
        return super().evict(prompt)
