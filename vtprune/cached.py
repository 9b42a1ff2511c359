"""What a policy sees of the cache while a prompt is read and after it, and what it answers: the values of eviction."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vtprune.blocks.probe_rows import ALL, Probes
from vtprune.blocks.sinks import excluded

HEADS = ("all", "kv")
"""Over which heads attention is averaged: "all" into one row, "kv" those that share a key head of the cache."""


class LayerView(Protocol):
    """One decoder layer that has just run, for all samples; ``vtprune.cache_sight`` makes it."""

    def stored(self, b: int, what: str) -> Tensor: ...
    def received(self, b: int, heads: str, probes: Probes) -> Tensor: ...
    def attention(self, b: int, probes: Probes) -> Tensor: ...
    def probed(self, b: int, probes: Probes) -> Tensor: ...
    def queries_ahead(self, b: int, count: int) -> Tensor: ...
    def scale(self) -> float: ...
    def shared(self) -> bool: ...
    def output_weight(self) -> Tensor: ...


@dataclass(frozen=True)
class CachedSlots:
    """The visual tokens of ONE sample in the cache of one decoder layer.

    The S keys are those of the sample's tokens, earlier turns first, in prompt order, without padding.

    index: of the layer.
    slots: (N,) int64, ascending: which of the S keys are visual tokens of this forward; only they may be evicted.
    rows:  (N,) int64: which of the sample's visual tokens, counted before any pruning, these are.
    sinks: (N,) bool, which of them are attention sinks, where ``wrap`` was told what becomes of those, by
           ``sink_mode``; None elsewhere, and in layers where sinks are not looked for yet.
    """

    index: int
    slots: Tensor
    rows: Tensor
    sinks: Tensor | None = field(default=None, kw_only=True)
    sink_mode: str = field(default="ignore", kw_only=True)

    def __len__(self) -> int:
        return len(self.slots)

    def told(self, score: Tensor) -> Tensor:
        """Scores (..., N) that rank the tokens as these do, but for sinks, of which the user has said what he wants."""
        if self.sinks is None:
            return score
        sinks, n = self.sinks.to(score.device), len(self)
        if self.sink_mode == "exclude":
            return excluded(score, sinks)
        # by ranks, for scores may be anything
        order = score.sort(dim=-1, descending=True, stable=True).indices
        ranks = torch.arange(n, 0, -1, device=score.device).expand(score.shape)
        return torch.empty_like(order).scatter_(-1, order, ranks) + sinks * (n if self.sink_mode == "keep" else -n)


@dataclass(frozen=True)
class CachedLayer(CachedSlots):
    """What a policy sees of ONE sample in one decoder layer, right after its attention ran in the prefill.

    H is the number of query heads, H_kv that of key heads, G is 1 or H_kv by ``heads`` (see ``HEADS``). It can be read
    while ``watch`` runs.
    """

    view: LayerView = field(repr=False)
    sample: int = 0

    @property
    def keys(self) -> Tensor:
        """(H_kv, S, d) as attention compares them, rotated."""
        return self.view.stored(self.sample, "keys")

    @property
    def values(self) -> Tensor:
        """(H_kv, S, d_v)."""
        return self.view.stored(self.sample, "values")

    def received(self, heads: str = "all", probes: Probes = ALL) -> Tensor:
        """(G, S) float32: the attention that each key gets, summed over the sample's queries in this forward.

        probes: over some of them alone: the last ones, and others that are drawn by the prompt.
        """
        return self.view.received(self.sample, heads, probes)

    def attention(self, probes: Probes) -> Tensor:
        """(H, R, S) float32: what each of some queries pays to each key; few queries, as it is held."""
        return self.view.attention(self.sample, probes)

    def probed(self, probes: Probes = ALL) -> Tensor:
        """(R,) int64, ascending: which of the S tokens those queries belong to; a key is seen by those from it on."""
        return self.view.probed(self.sample, probes)

    def queries_ahead(self, count: int) -> Tensor:
        """(H, Q, d): the queries of all tokens of this forward, had they stood on the next ``count`` places.

        Rotated to each of these places, behind the prompt, and averaged over them.
        """
        return self.view.queries_ahead(self.sample, count)

    @property
    def scale(self) -> float:
        """The factor on products of queries and keys."""
        return self.view.scale()

    @property
    def shared(self) -> bool:
        """Whether the cache holds latents that all heads share, so that one set of tokens stays for all of them."""
        return self.view.shared()

    @property
    def output_weight(self) -> Tensor:
        """(D, H * d_v): what the layer multiplies its heads' outputs with."""
        return self.view.output_weight()


@dataclass(frozen=True)
class CachedPrompt:
    """ONE sample's prompt after its prefill, when every layer's keys and values lie in the cache.

    layers: what was seen of every layer whose cache can be evicted from, in order: layers without a window that keep
            keys of their own.
    notes:  of each of them what the policy's ``watch`` answered.
    stored: of the i-th of them its keys and values (H_kv, S, d), as in ``CachedLayer``.
    visual: how many visual tokens the prompt had before any pruning.
    ahead:  of each of them (H_kv, g * n, S) float32, what the queries of ``n`` tokens to come pay to its keys, by key
            head of the cache, where the policy has a ``lookahead`` of n and ``glance``, the rough cut; else ().
    length: tokens of the prompt. seed, memory: as in ``VisualTokens``.
    """

    layers: Sequence[CachedSlots]
    notes: MutableSequence[Any]
    stored: Callable[[int], tuple[Tensor, Tensor]] = field(repr=False)
    visual: int
    length: int
    seed: int = 0
    memory: MutableMapping = field(default_factory=dict)
    ahead: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Eviction:
    """What stays of the visual keys and values of one layer of one sample.

    keep:   (K,) int64, strictly ascending places among the layer's N visual tokens; or (H_kv, K), other ones in every
            key head, as many in each.
    keys, values: (H_kv, K, d) that stand there from now on; None leaves them as they are.
    """

    keep: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class Evictions:
    """A policy's answer for one sample: one ``Eviction`` for each of its layers. note: a sentence for the report."""

    layers: Sequence[Eviction]
    note: str = ""


def evicts(policy: Any) -> bool:
    """Whether a policy evicts from the cache after a prefill."""
    return getattr(policy, "evict", None) is not None
