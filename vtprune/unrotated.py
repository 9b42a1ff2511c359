"""Queries and keys of a decoder layer before they are rotated to their places, or rotated to others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.attention import attention_inputs, without_state

UNROTATED = ("unrotated_queries", "unrotated_keys")


@torch.no_grad()
def unrotated(attn: nn.Module, inputs: Mapping[str, Any], name: str, by: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(B, H or H_kv, P, d) the queries or keys of a layer, after its norms and without rotation, or rotated otherwise.

    attn:   the layer's attention module; of its projections the one that is asked for is computed.
    inputs: its keyword arguments, ``hidden_states`` (B, P, D) after the input norm and ``position_embeddings``
            (cosines, sines) among them.
    name:   one of ``UNROTATED``.
    by:     (B, r) cosines and sines that all tokens of a sample are rotated by, or their means: rotating is linear.
    Raises NotImplementedError for a model that rotates in another way.
    """
    tables = inputs.get("position_embeddings")
    if not isinstance(tables, (tuple, list)) or len(tables) != 2:
        raise NotImplementedError(
            f"{type(attn).__name__} is not given cosines and sines to rotate by, so its {name.replace('_', ' ')} "
            "cannot be read; choose a policy without this signal"
        )
    if by is None:
        other = torch.ones_like(tables[0]), torch.zeros_like(tables[1])
    else:
        # of three coordinates each has the same
        batch = len(by[0])
        other = tuple(
            one[:, None].expand(*table.shape[:-3], batch, *table.shape[-2:]) for one, table in zip(by, tables)
        )
    asked = {**without_state(inputs), "position_embeddings": other}
    queries = name == "unrotated_queries"
    (call,) = attention_inputs(attn, without=("k_proj" if queries else "q_proj", "v_proj"), **asked)
    return call.query if queries else call.key
