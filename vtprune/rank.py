"""The signal attention_rank: how much of a decoder layer's attention, sharpened and followed on, ends at each token."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.attention import allowed_keys, attention_inputs, with_key_bias, without_state
from vtprune.blocks.attention_rank import STEPS, attention_rank
from vtprune.compat import attention_window
from vtprune_kernels.attention_columns import Visible

RANK = "attention_rank"
PASSES = STEPS + 1
"""How often all scores of the layer are made where no map is held: once for their sums, once for each step."""


@torch.no_grad()
def layer_rank(attn: nn.Module, inputs: Mapping[str, Any], real: Tensor, past: int, biased: bool = False) -> Tensor:
    """(B, P) float32: the rank of every token of this forward among its sample's.

    attn:   the layer's attention module; its queries and keys are computed again, it does not run.
    inputs: its keyword arguments, ``hidden_states`` (B, P, D) after the input norm.
    real:   (B, P) bool, False for padding. past: columns of earlier turns that the mask has before these; no rank.
    biased: whether the mask adds to the scores of keys, and does not only hide them.
    """
    hidden, mask = inputs["hidden_states"], inputs.get("attention_mask")
    (call,) = attention_inputs(attn, without=("v_proj",), **without_state(inputs))
    n, causal, window = hidden.shape[1], getattr(attn, "is_causal", True), attention_window(attn)
    query, key = call.query, call.key
    rows = torch.arange(n, device=hidden.device).expand(len(hidden), -1).contiguous()
    if mask is None and causal and window is None:
        visible = Visible(last=rows, valid=real)
    else:
        allowed = allowed_keys(mask, rows, n, past + n, causal=causal, window=window)[..., past:].contiguous()
        visible = Visible(valid=real, allowed=allowed)
        if biased:
            query, key = with_key_bias(query, key, call.scaling, mask[..., past:], rows, allowed)
    return attention_rank(query, key.to(query.dtype), scale=call.scaling, visible=visible, real=real)


def real_rows(real: Tensor, columns: Tensor | None) -> Tensor:
    """(B, P) bool: which physical rows are tokens. real: (B, L) of the unpruned columns; columns: (B, P) or None.

    Pads that unequal counts made necessary stand on the left and repeat the column of the row after them.
    """
    if columns is None:
        return real
    pad = torch.zeros_like(columns, dtype=torch.bool)
    pad[:, :-1] = columns[:, :-1] == columns[:, 1:]
    return real.gather(1, columns) & ~pad
