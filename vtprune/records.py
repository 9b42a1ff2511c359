"""What was done in the last prefill: at every site, in the cache, and in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vtprune.layout import Layout
from vtprune.stopwatch import Stopwatch

IN_CACHE = "in the cache"
"""The place where policies of the cache act, in words, where those of others are sites."""


@dataclass
class SiteRecord:
    """What one site did in the last prefill.

    site:         where.
    before:       visual tokens offered to the policy, by sample.
    lap:          from before the signals to after the selecting, all samples together.
    kept:         by sample the rows that stay, (k,) int64, counted in the sample's offered visual tokens.
    merges:       by sample what ``Selection.merge`` said, None where nothing was merged.
    notes:        what the policy said of its answers, each sentence once.
    reads:        the signals that it read.
    sinks:        by sample in which attention was read, where sinks are looked for: (n,) bool, which of the tokens
                  before are visual attention sinks; None before layer 2.
    """

    site: float
    before: list[int]
    lap: Stopwatch
    kept: list[Tensor] = field(default_factory=list)
    merges: list[Tensor | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    sinks: dict[int, Tensor | None] = field(default_factory=dict)

    @property
    def milliseconds(self) -> float:
        """Spent on signals and selecting, all samples together."""
        return self.lap.milliseconds

    @property
    def after(self) -> list[int]:
        return [len(kept) for kept in self.kept]


@dataclass
class CacheRecord:
    """What stayed of the visual keys and values of the layers that were looked at.

    layers: their indices. before: [layer][sample] visual tokens before. kept: [layer][sample] (K,) int64 on the CPU,
    counted in the sample's offered visual tokens, or (H_kv, K) where key heads keep different ones.
    notes:  what the policy said, each sentence once. bytes_before: of all keys and values when the prefill ended.
    """

    layers: list[int]
    before: list[list[int]]
    kept: list[list[Tensor]]
    notes: list[str]
    laps: list[Stopwatch]
    bytes_before: int

    @property
    def after(self) -> list[list[int]]:
        """[layer][sample] visual tokens that stayed, in each key head."""
        return [[kept.shape[-1] for kept in layer] for layer in self.kept]

    def share(self, sample: int, visual: int) -> float:
        """The fraction that stayed of ``visual`` tokens, mean over the layers; 1.0 where there were none."""
        return sum(layer[sample] for layer in self.after) / (visual * len(self.layers)) if visual else 1.0

    def __str__(self) -> str:
        def mean(counts: list[list[int]]) -> str:
            return ", ".join(f"{sum(layers) / len(layers):.4g}" for layers in zip(*counts))

        counts = f"{mean(self.before)} -> {mean(self.after)} visual tokens, mean of {len(self.layers)} layers"
        return f"cache: {counts}, {self.milliseconds:.1f} ms"

    @property
    def milliseconds(self) -> float:
        """Spent on looking and evicting, all layers and samples together."""
        return sum(lap.milliseconds for lap in self.laps)


@dataclass
class Prefill:
    """One forward that held visual tokens.

    lengths: by sample, tokens that each layer processes; a pair (attention, MLP) where a site lies inside.
    cached:  what was evicted from the cache afterwards, None where the policy does not.
    windows: how many tokens at most the layers hold whose cache slides.
    """

    layout: Layout
    offered: list[Tensor]
    sites: list[SiteRecord] = field(default_factory=list)
    lengths: list[list[int | tuple[int, int]]] = field(default_factory=list)
    past: list[list[int]] = field(default_factory=list)
    kv_bytes: int | None = None
    state_bytes: int = 0
    dtype_size: int = 4
    cached: CacheRecord | None = None

    windows: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def held(self, pads: Sequence[int] = ()) -> list[list[int]]:
        """By sample, tokens whose keys and values each layer holds after the prefill. pads: of each sample, in all."""
        held = [[n[0] if isinstance(n, tuple) else n for n in lengths] for lengths in self.lengths]
        record = self.cached
        for layer, before, after in zip(record.layers, record.before, record.after) if record else ():
            for b, lengths in enumerate(held):
                lengths[layer] += after[b] - before[b]
        for lengths, pad in zip(held, pads):
            lengths[:] = [n + pad for n in lengths]
        for layer, window in self.windows.items():
            for lengths in held:
                lengths[layer] = min(lengths[layer], window)
        return held
