"""The gated delta rule token by token and in float64, in place of transformers' chunks in float32.

Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025, arXiv:2412.06464, equation 10. With
it what the tiny models compute does not depend on where chunks begin, so oracles hold to the last digits.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

MODULES = tuple(f"transformers.models.{name}.modeling_{name}" for name in ("qwen3_5", "qwen3_5_moe"))


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    **others,
) -> tuple[Tensor, Tensor]:
    """S_t = S_(t-1) exp(g_t) (I - beta_t k_t k_t^T) + beta_t v_t k_t^T, o_t = S_t q_t, for unit queries and keys.

    query, key: (B, L, H_k, d_k). value: (B, L, H, d_v). g, beta: (B, L, H). States are (B, H, d_k, d_v).
    """
    dtype, heads = value.dtype, value.shape[2]
    query, key = (x.double().repeat_interleave(heads // x.shape[2], 2) for x in (query, key))
    query, key = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key))
    query, value = query / query.shape[-1] ** 0.5, value.double()
    shape = (*value.shape[:1], heads, key.shape[-1], value.shape[-1])
    state = value.new_zeros(shape) if initial_state is None else initial_state.double()
    out = []
    for t in range(value.shape[1]):
        state = state * g[:, t, :, None, None].double().exp()
        wrong = value[:, t] - torch.einsum("bhkv,bhk->bhv", state, key[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", key[:, t], beta[:, t, :, None].double() * wrong)
        out.append(torch.einsum("bhkv,bhk->bhv", state, query[:, t]))
    return torch.stack(out, 1).to(dtype), state


@pytest.fixture
def exact(monkeypatch):
    """Lets the tiny models compute the rule so while a test runs."""
    for module in map(import_module, MODULES):
        for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
            monkeypatch.setattr(module, name, delta_rule)
