"""LAQ: a few tokens decoded on a roughly cut cache tell which of its entries an answer needs.

Wang et al., "Lookahead Q-Cache: Achieving More Consistent KV Cache Eviction via Pseudo Query", 2025, arXiv:2505.20334,
section 3. No code was released. Differs from the publication: visual tokens alone compete.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.blocks.probe_rows import Probes
from vtprune.blocks.stages import is_index
from vtprune.cached import HEADS, CachedLayer, CachedPrompt, Evictions
from vtprune.policies.base import check_choices, register
from vtprune.policies.cache_base import CachePolicy
from vtprune.policies.checks import check_index
from vtprune.policies.snapkv import SnapKV


@register("laq")
@dataclass
class LAQ(CachePolicy):
    """Scores tokens by the mean attention of the queries of tokens to come, decoded greedily and forgotten again.

    lookahead: how many such tokens; each costs a decode step, on a copy of the cache cut down by SnapKV.
    window:    of how many of the prompt's last queries the attention counts too, as in LAQ++; 0 for LAQ.
    heads:     "kv": every key head keeps its own tokens, as published; "all": one set for a layer.
    """

    lookahead: int = 8
    window: int = 0
    heads: str = "kv"

    def __post_init__(self):
        super().__post_init__()
        check_index("lookahead", self.lookahead)
        check_choices(self, {"heads": HEADS})
        if not is_index(self.window, 0):
            raise ValueError(f"window is a number of last queries, 0 or more; got {self.window!r}")
        self._crude = SnapKV(self.keep_ratio, self.n_keep, heads=self.heads)

    def watch(self, layer: CachedLayer) -> tuple[Tensor, Tensor | None]:
        """The rough scores, and the attention that the window pays to the visual tokens, summed over its queries."""
        seen = layer.received(self.heads, Probes(self.window, 0))[:, layer.slots] if self.window else None
        return self._crude.score(layer), seen

    def glance(self, prompt: CachedPrompt) -> Evictions:
        """The rough cut, on whose copy the tokens to come are decoded."""
        prompt.notes[:] = [None if note is None else note[0] for note in prompt.notes]
        return self._crude.evict(prompt)

    def evict(self, prompt: CachedPrompt) -> Evictions:
        for i, (layer, rows) in enumerate(zip(prompt.layers, prompt.ahead, strict=True)):
            if prompt.notes[i] is not None:
                prompt.notes[i] = self._mean(rows[..., layer.slots.to(rows.device)], prompt.notes[i][1])
        return super().evict(prompt)

    def _mean(self, rows: Tensor, seen: Tensor | None) -> Tensor:
        """(N,) or (H_kv, N) of rows (H_kv, g * n, N)."""
        total, count = rows.sum(1) / (rows.shape[1] // self.lookahead), self.lookahead
        total = total.mean(0, keepdim=True) if self.heads == "all" else total
        if seen is not None:
            total, count = total + seen.to(total.device), count + self.window
        return (total / count)[0] if self.heads == "all" else total / count
