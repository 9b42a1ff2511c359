"""Rows of a decoder layer's attention: what some of its queries pay to every key."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtprune.attention import allowed_keys, attention_inputs, projects_apart, with_key_bias, without_state
from vtprune.compat import attention_window
from vtprune_kernels.attention_columns import Visible
from vtprune_kernels.attention_rows import attention_rows


@torch.no_grad()
def row_attention(
    attn: nn.Module,
    inputs: Mapping[str, Any],
    rows: Tensor,
    mask: Any = None,
    keys: Tensor | None = None,
    *,
    biased: bool = False,
    reduce: Literal["heads", "largest", "none"] = "heads",
) -> Tensor:
    """(B, R, K) float32: what some rows of a decoder layer pay to every key, mean over heads.

    attn:   the layer's attention module; a few of its projections are computed, it does not run.
    inputs: its keyword arguments: ``hidden_states`` (B, P, D) after the input norm, ``position_embeddings`` a tensor or
            tensors (..., B or 1, P, d), ``position_ids`` (..., B or 1, P). Caches and masks among them are ignored.
    rows:   (B, R) int64, the rows of ``hidden_states`` to look from; repeat one where a sample has fewer.
    mask:   that the layer is given, see ``vtprune.attention.allowed_keys``; None is causal.
    keys:   (B, H_kv, K, d) that the layer left in its cache, the last P of them from ``hidden_states``; None computes
            them from ``hidden_states``. Queries are projected for R rows only, and values for none,
            where the module's projections can be told apart.
    biased: whether the mask adds to the scores of keys, and does not only hide them.
    reduce: "largest" gives the largest over heads instead of the mean, "none" all of them: (B, H, R, K).
    """
    query, key, scaling, allowed = read_rows(attn, inputs, rows, mask, keys, biased=biased)
    visible = Visible(allowed=allowed)
    if reduce != "none":
        return attention_rows(query, key, scale=scaling, visible=visible, reduce=reduce)
    share = query.shape[1] // key.shape[1]
    heads = ((query[:, head, None], key[:, head // share, None]) for head in range(query.shape[1]))
    return torch.stack([attention_rows(q, k, scale=scaling, visible=visible) for q, k in heads], 1)


@torch.no_grad()
def read_rows(
    attn: nn.Module,
    inputs: Mapping[str, Any],
    rows: Tensor,
    mask: Any = None,
    keys: Tensor | None = None,
    *,
    biased: bool = False,
) -> tuple[Tensor, Tensor, float, Tensor]:
    """What rows of attention are made of: queries (B, H, R, d), keys (B, H_kv, K, d), the factor on their products, and
    (B, R, K) bool, which keys each row sees. Arguments as of ``row_attention``."""
    hidden = inputs["hidden_states"]
    asked = without_state(inputs)
    few = inputs_of(asked, rows)
    if keys is None and not projects_apart(attn):
        (call,) = attention_inputs(attn, **asked)
        query, key = _take(call.query.transpose(0, 1), rows).transpose(0, 1), call.key
    else:
        (call,) = attention_inputs(attn, without=("k_proj", "v_proj"), **few)
        query, key = call.query, keys
        if keys is None:
            (call,) = attention_inputs(attn, without=("q_proj", "v_proj"), **asked)
            key = call.key
    allowed = allowed_keys(
        mask,
        rows,
        hidden.shape[1],
        key.shape[2],
        causal=getattr(attn, "is_causal", True),
        window=attention_window(attn),
    )
    if biased:
        query, key = with_key_bias(query, key, call.scaling, mask, rows, allowed)
    return query, key.to(query.dtype), call.scaling, allowed


def padded_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, R) int64: rows of each sample, the last one repeated where it has fewer; and (B, R) bool, which are not."""
    counts = [len(row) for row in rows]
    padded = torch.stack([torch.cat([row, row[-1:].expand(max(counts) - len(row))]) for row in rows])
    own = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
    return padded, own.to(padded.device)


def inputs_of(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The inputs of attention with only some rows (B, R) of what there is for each token."""
    return {name: _PER_TOKEN[name](value, rows) if name in _PER_TOKEN else value for name, value in inputs.items()}


def _take(values: Any, rows: Tensor) -> Any:
    """Rows (B, R) along the last but one dimension of tensors (..., B or 1, P, d)."""
    if values is None:
        return None
    if isinstance(values, (tuple, list)):
        return type(values)(_take(value, rows) for value in values)
    lead, (length, size) = values.shape[:-3], values.shape[-2:]
    index = rows.to(values.device)[:, :, None].expand(*lead, *rows.shape, size)
    return values.expand(*lead, len(rows), length, size).gather(-2, index)


def _take_ids(ids: Tensor | None, rows: Tensor) -> Tensor | None:
    """Entries (B, R) along the last dimension of a tensor (..., B or 1, P)."""
    return None if ids is None else _take(ids[..., None], rows)[..., 0]


_PER_TOKEN = {"hidden_states": _take, "position_embeddings": _take, "position_ids": _take_ids}
