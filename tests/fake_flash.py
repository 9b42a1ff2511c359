"""FlashAttention 2 as transformers calls it, on CPU: a 2-D padding mask or none, causal at the bottom right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence

NAME = "fake_flash_attention"  # "flash" in the name: vision towers then hand over cu_seq_lens, as they do on a GPU


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float, causal: bool, window: int | None) -> Tensor:
    """One sequence without padding: q (H, Q, D), k and v (H, K, D); the last query sees the last key."""
    ahead = torch.arange(k.shape[1])[None] - torch.arange(q.shape[1])[:, None] - (k.shape[1] - q.shape[1])
    hidden = (ahead > 0) if causal else torch.zeros_like(ahead, dtype=torch.bool)
    if window is not None and k.shape[1] > window:
        hidden = hidden | (ahead <= -window)
    return (q @ k.transpose(-1, -2) * scaling).masked_fill(hidden, -torch.inf).softmax(-1) @ v


def _check(attention_mask: Tensor | None, batch_size: int, keys: int) -> None:
    if attention_mask is not None and (attention_mask.dim() != 2 or attention_mask.shape[0] != batch_size):
        raise AssertionError(f"FlashAttention takes a (B, K) mask; got {tuple(attention_mask.shape)}")
    if attention_mask is not None and attention_mask.shape[1] > keys:
        raise AssertionError(f"the mask has {attention_mask.shape[1]} columns for {keys} keys")


class FakeFlash:
    """The attention function. ``calls`` counts the causal calls: "mask2d", "none", and of the latter "packed".

    keys: the number of keys of each causal call, in order.
    """

    def __init__(self):
        self.calls: Counter[str] = Counter()
        self.keys: list[int] = []

    def reset(self) -> None:
        self.calls.clear()
        self.keys.clear()

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        is_causal: bool | None = None,
        position_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """query (B, H, Q, D), key and value (B, H_kv, K, D) -> ((B, Q, H, D), None)."""
        causal = module.is_causal if is_causal is None else is_causal
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        _check(attention_mask, len(query), key.shape[2])
        packed = attention_mask is None and cu_seq_lens_q is None
        packed = packed and bool(_is_packed_sequence(position_ids, len(query)))
        if causal:
            self.keys.append(key.shape[2])
            self.calls["none" if attention_mask is None else "mask2d"] += 1
            self.calls["packed"] += packed
        if attention_mask is None and (packed or cu_seq_lens_q is not None):
            if packed:  # a new sequence begins wherever the smallest position stands
                starts = (position_ids.reshape(-1) == position_ids.min()).nonzero().flatten()
                cu_seq_lens_q = cu_seq_lens_k = torch.cat([starts, torch.tensor([position_ids.numel()])])
            out = torch.zeros_like(query)
            q_edges, k_edges = cu_seq_lens_q.tolist(), cu_seq_lens_k.tolist()
            for a, b, c, d in zip(q_edges, q_edges[1:], k_edges, k_edges[1:]):
                out[0, :, a:b] = _attend(query[0, :, a:b], key[0, :, c:d], value[0, :, c:d], scaling, causal, None)
            return out.transpose(1, 2), None
        out = query.new_zeros(*query.shape[:3], value.shape[-1])
        for b in range(len(query)):
            k_rows = torch.ones(key.shape[2], dtype=torch.bool) if attention_mask is None else attention_mask[b].bool()
            width = len(k_rows)  # a static cache is longer than its mask: the keys beyond it are cut off
            q_rows = k_rows[-query.shape[2] :] if query.shape[2] > 1 else torch.ones(1, dtype=torch.bool)
            q, k, v = query[b][:, q_rows], key[b][:, :width][:, k_rows], value[b][:, :width][:, k_rows]
            out[b, :, q_rows] = _attend(q, k, v, scaling, causal, sliding_window)
        return out.transpose(1, 2), None


@contextmanager
def registered() -> Iterator[FakeFlash]:
    """Makes the function known to transformers under ``NAME`` inside the block."""
    flash = FakeFlash()
    AttentionInterface.register(NAME, flash)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    try:
        yield flash
    finally:
        AttentionInterface._global_mapping.pop(NAME)
        AttentionMaskInterface._global_mapping.pop(NAME)


@pytest.fixture
def flash() -> Iterator[FakeFlash]:
    """Import this name into a test module to use it as a fixture."""
    with registered() as function:
        yield function


def use_fake_flash(model: nn.Module) -> nn.Module:
    """Sets the implementation on the configs of all sub-modules, vision tower included."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation_internal = NAME
    return model
