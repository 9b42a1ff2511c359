"""The signal probe_attention: what some rows of a decoder layer pay to each key, and how many of them may see it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.attention import attention_inputs
from vtprune.rows import padded_rows, read_rows
from vtprune_kernels.attention_columns import Visible
from vtprune_kernels.attention_rows import attention_rows

PROBED = "probe_attention"
CHUNK = 512
"""Rows for which it is written down at a time who may see whom."""


@torch.no_grad()
def probe_attention(
    attn: nn.Module,
    inputs: Mapping[str, Any],
    probed: Sequence[Tensor],
    mask: Any = None,
    keys: Tensor | None = None,
    *,
    biased: bool = False,
) -> Tensor:
    """(B, 2, K) float32: what a sample's probe rows pay to each key, summed over rows, mean over heads; and how many of
    the rows may see it.

    probed: of each sample (R,) int64, rows of ``hidden_states``. The other arguments are those of ``row_attention``.
    """
    if keys is None:
        asked = {k: v for k, v in inputs.items() if k in ("hidden_states", "position_embeddings", "position_ids")}
        (call,) = attention_inputs(attn, without=("q_proj", "v_proj"), attention_mask=None, **asked)
        keys = call.key
    rows, counted = (part.to(keys.device) for part in padded_rows(probed))
    found = torch.zeros(len(rows), 2, keys.shape[2], device=keys.device)
    for some, counts in zip(rows.split(CHUNK, 1), counted.split(CHUNK, 1), strict=True):
        query, key, scaling, allowed = read_rows(attn, inputs, some, mask, keys, biased=biased)
        # rows at the beginning see none of the keys at the end
        stop = int(allowed.any(1).any(0).nonzero().max()) + 1 if rows.shape[1] > CHUNK else key.shape[2]
        key, allowed = key[:, :, :stop], allowed[..., :stop]
        # a sample that has no row left is asked for one, which is not counted
        weights = counts.float()
        weights[:, 0] = 1
        paid = attention_rows(
            query, key, scale=scaling, visible=Visible(allowed=allowed), weights=weights, reduce="heads+rows"
        )
        counts = counts & allowed.any(-1)
        found[:, 0, :stop] += paid * counts.sum(1, keepdim=True)
        found[:, 1, :stop] += (allowed & counts[..., None]).sum(1)
    return found
