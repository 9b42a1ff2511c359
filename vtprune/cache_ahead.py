"""Tokens to come: a few are decoded on a copy of the cache, their queries are listened to, and all is forgotten."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from vtprune import compat
from vtprune.cache import SLOT_TENSORS
from vtprune.cache_scores.probe import probe_rows
from vtprune.rows import read_rows
from vtprune_kernels.attention_columns import Visible

if TYPE_CHECKING:
    from transformers import Cache

    from vtprune.forward import Forward

HEARD: ContextVar[dict[int, list[Mapping]] | None] = ContextVar("vtprune_heard", default=None)
"""Where the inputs of attention in decoded tokens go, by layer; None while nobody listens."""


def hear(index: int, inputs: Mapping[str, Any]) -> None:
    """Notes the input of a layer's attention in a decode step, if somebody listens."""
    heard = HEARD.get()
    if heard is not None:
        heard.setdefault(index, []).append({name: x for name, x in inputs.items() if name != "past_key_values"})


def copied(cache: Cache, n: int) -> Cache:
    """A copy that hangs on no graph, with room for ``n`` more tokens."""
    parts = [part for layer in cache.layers for part in vars(layer).values() if isinstance(part, Tensor)]
    # tensors with a gradient cannot be copied otherwise
    new = copy.deepcopy(cache, {id(part): part.detach().clone() for part in parts})
    for layer in new.layers:
        # windows that are full slide
        if isinstance(layer, StaticLayer) and layer.is_initialized and type(layer) is not StaticSlidingWindowLayer:
            layer.max_cache_len += n
            layer.keys, layer.values = (nn.functional.pad(part, (0, 0, 0, n)) for part in (layer.keys, layer.values))
            for name in SLOT_TENSORS:
                if getattr(layer, name, None) is not None:
                    setattr(layer, name, nn.functional.pad(getattr(layer, name), (0, n)))
    return new


@torch.no_grad()
def look_ahead(pruner, head: nn.Module, forward: Forward, cache: Cache, output: Any, n: int) -> list[list[Tensor]]:
    """By watched layer and sample (H_kv, g * n, S) float32: what the next ``n`` greedy tokens pay to the prompt's keys.

    cache: a copy that is decoded on. forward.cache is what is looked at, and stays as it is.
    """
    heard: dict[int, list[Mapping]] = {}
    token = HEARD.set(heard)
    try:
        with compat.rotary_as_before(pruner.decoder):
            _decode(pruner, head, forward, cache, output, n)
    finally:
        HEARD.reset(token)
    return [_rows(pruner, forward, watched, heard[watched.index]) for watched in forward.watched]


def _decode(pruner, head: nn.Module, forward: Forward, cache: Cache, output: Any, n: int) -> None:
    batch = len(forward.samples)
    device = output[0].device
    never = torch.tensor(list(pruner.placeholders.values()), device=device)
    first = torch.tensor([forward.next_place(b) for b in range(batch)], device=device)[:, None]
    line = forward.position_ids is None or forward.position_ids.dim() == 2
    lead = () if line else (compat.position_rows(pruner.decoder),)
    mask = forward.mask2d
    if mask is None and not forward.tokens().all():
        mask = forward.tokens().long().to(device)
    for step in range(n):
        # some bases have the head inside
        logits = output.logits if getattr(output, "logits", None) is not None else head(output[0][:, -1:])
        ids = logits[:, -1:].index_fill(-1, never, -torch.inf).argmax(-1)
        more = {"position_ids": (first + step).expand(*lead, batch, 1)}
        if mask is not None:
            mask = nn.functional.pad(mask, (0, 1), value=1)
            more["attention_mask"] = mask
        output = pruner.base(input_ids=ids, past_key_values=cache, use_cache=True, **more)


def _rows(pruner, forward: Forward, watched, heard: list[Mapping]) -> list[Tensor]:
    attn, layer = pruner.layers[watched.index].self_attn, forward.cache.layers[watched.index]
    keys = compat.compared_keys(attn, layer.keys, layer.values)
    row = torch.zeros(len(keys), 1, dtype=torch.int64, device=keys.device)
    queries = [read_rows(attn, inputs, row, None, keys) for inputs in heard]
    scale, query = queries[0][2], torch.cat([one[0] for one in queries], 2)
    valid = torch.zeros(len(keys), keys.shape[2], dtype=torch.bool, device=keys.device)
    for b, places in enumerate(watched.places):
        valid[b, places] = True
    paid = probe_rows(query, keys.to(query.dtype), scale=scale, visible=Visible(valid=valid))
    groups = layer.keys.shape[1]
    return [one[..., places].reshape(groups, -1, len(places)) for one, places in zip(paid, watched.places, strict=True)]
