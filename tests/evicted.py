"""A policy that evicts from the cache, and the oracle of eviction: nothing leaves, later rows may not look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import vtprune
from tests import tiny
from vtprune.cached import CachedLayer, CachedPrompt, Eviction, Evictions

Hidden = tuple[int, dict[int, Tensor]]
"""Columns of the conversation when something was evicted, and by layer what stays of them: (B, 1 or H_kv, L) bool."""


@dataclass
class EvictByMass:
    """Keeps the keys that got most attention; in layer i ``step * i`` fewer, so that layers differ in length.

    heads: "kv" keeps others in every key head. sites: none, or where ``ByNorm`` prunes before.
    """

    ratio: float = 0.6
    step: int = 1
    heads: str = "all"
    needs: frozenset[str] = frozenset()
    sites: tuple[float, ...] = ()

    def watch(self, layer: CachedLayer) -> Tensor:
        return layer.received(self.heads)[:, layer.slots]

    def evict(self, prompt: CachedPrompt) -> Evictions:
        answers = []
        for layer, mass in zip(prompt.layers, prompt.notes, strict=True):
            if mass is None:
                answers.append(Eviction(torch.zeros(0, dtype=torch.int64)))
                continue
            k = max(1, round(self.ratio * len(layer)) - self.step * layer.index)
            rows = mass.topk(k, -1).indices.sort(-1).values
            answers.append(Eviction(rows[0] if self.heads == "all" else rows))
        return Evictions(answers)


@dataclass
class PruneAndEvict(EvictByMass):
    """``ByNorm`` at its sites, and eviction of what is left."""

    sites: tuple[float, ...] = (vtprune.BEFORE_LLM, 2)

    def select(self, tokens: vtprune.VisualTokens) -> vtprune.Selection:
        k = max(1, round(0.7 * len(tokens)))
        return vtprune.Selection(tokens.hidden.float().norm(dim=-1).topk(k).indices.sort().values)


def stays(model: nn.Module, past: int = 0) -> Hidden:
    """What the last prefill's eviction left, for the oracle. past: columns before that forward."""
    last = vtprune.report(model).last
    length, masks = past + last.layout.length, {}
    for layer, kept in zip(last.cached.layers, last.cached.kept, strict=True):
        heads = max(rows.shape[0] if rows.dim() == 2 else 1 for rows in kept)
        mask = torch.ones(len(kept), heads, length, dtype=torch.bool)
        for b, rows in enumerate(kept):
            columns = last.layout.rows[b].columns[last.offered[b]] + past
            mask[b, :, columns] = False
            mask[b].scatter_(1, columns[rows].expand(heads, -1), True)
        masks[layer] = mask
    own = {}
    for i, layer in enumerate(tiny.text_model(model).layers):
        # layers that look at the keys of the last one of their kind that has its own
        kind = kind_of(model, i)
        if not getattr(getattr(layer, "self_attn", None), "is_kv_shared_layer", False):
            own[kind] = i
        elif own[kind] in masks:
            masks[i] = masks[own[kind]]
    return length, masks


def kind_of(model: nn.Module, i: int) -> str:
    return (getattr(tiny.text_model(model).config, "layer_types", None) or {i: ""})[i]


class EvictedColumns:
    """Inside the block nothing is evicted: forwards that begin behind an eviction do not see the columns that went.

    evictions: (columns then, what stays by layer), as ``stays`` gives them; append to ``.evictions`` for a later turn.
    """

    def __init__(self, model: nn.Module, evictions: Sequence[Hidden]):
        self.model, self.evictions, self._hooks = model, list(evictions), []

    def __enter__(self) -> EvictedColumns:
        text = tiny.text_model(self.model)
        self._text = text
        for i, layer in enumerate(text.layers):
            self._hooks.append(layer.register_forward_pre_hook(partial(self._layer, i), with_kwargs=True))
        self._hooks.append(text.register_forward_pre_hook(self._begin, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self._past = 0 if cache is None else int(cache.get_seq_length())

    def _layer(self, i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        masks = [masks[i] for length, masks in self.evictions if length <= self._past and i in masks]
        if not masks:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        rows, batch = hidden.shape[-2], hidden.shape[-3]
        width = self._past + rows
        visible = torch.ones(batch, 1, width, dtype=torch.bool)
        for mask in masks:
            mask = mask.repeat_interleave(batch // len(mask), 0)
            visible = visible & pad(mask, (0, width - mask.shape[-1]), value=True)
        if visible.shape[1] > 1:
            visible = visible.repeat_interleave(self._text.config.num_attention_heads // visible.shape[1], 1)
        visible = visible[:, :, None, :]
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(rows, width, dtype=torch.bool).tril(width - rows)[None, None]
        if mask.dtype == torch.bool:
            mask = mask & visible
        else:
            mask = mask.masked_fill(~visible, torch.finfo(mask.dtype).min)
        return args, {**kwargs, "attention_mask": mask}
