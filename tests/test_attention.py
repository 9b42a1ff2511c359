"""Rows and columns of the softmax against brute force, what an attention module compares, and masks of every kind."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vtprune.attention import allowed_keys, attention_inputs
from vtprune.rows import row_attention


class Toy(nn.Module):
    """An attention module with (3, B, P, d) rotary tables and a method that chooses its back end."""

    def __init__(self, reached=True):
        super().__init__()
        self.config, self.reached = SimpleNamespace(_attn_implementation="mine"), reached
        self.config.__dict__["_attn_implementation_internal"] = "mine"

    def choose(self):
        return self.config._attn_implementation_internal

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        states = hidden_states[:, None] * position_embeddings.sum(0)[:, None]
        if not self.reached or self.choose() != "sdpa":
            return states
        return nn.functional.scaled_dot_product_attention(states, states, states, scale=0.5)


def test_tables_with_leading_dimensions_and_methods_of_the_module():
    """Oracle: the toy's own formula, written out."""
    hidden, tables = torch.randn(2, 6, 4), torch.rand(3, 1, 6, 4)
    rows = torch.tensor([[1, 5], [0, 3]])
    states = hidden * tables.sum(0)
    scores = (states @ states.transpose(1, 2) * 0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1).gather(1, rows[:, :, None].expand(-1, -1, 6))
    inputs = {"hidden_states": hidden, "position_embeddings": tables}
    torch.testing.assert_close(row_attention(Toy(), inputs, rows), expected)
    torch.testing.assert_close(row_attention(Toy(), inputs, rows, keys=states[:, None]), expected)


class Grouped(nn.Module):
    """Four query heads on two key heads, handed to transformers' own function; heads too wide for its GQA path."""

    def __init__(self):
        super().__init__()
        self.config, self.num_key_value_groups = SimpleNamespace(), 2

    def forward(self, hidden_states):
        query, key = (hidden_states[:, None].expand(-1, heads, -1, -1) for heads in (4, 2))
        return sdpa_attention_forward(self, query, key, key, None, scaling=0.1)


@pytest.mark.parametrize("rows", [1, 3])
def test_key_heads_come_once(rows):
    """Oracle: the shapes that the module made; on its way one query row would be repacked, several keys repeated."""
    (call,) = attention_inputs(Grouped(), hidden_states=torch.randn(2, rows, 320))
    assert call.query.shape == (2, 4, rows, 320) and call.key.shape == (2, 2, rows, 320) and call.scaling == 0.1


@pytest.mark.parametrize("module", [Toy(reached=False), nn.Linear(4, 4)])
def test_modules_that_cannot_be_read_are_named(module):
    with pytest.raises(NotImplementedError, match=f"queries and keys of {type(module).__name__} cannot be read"):
        attention_inputs(module, hidden_states=torch.randn(1, 2, 4), position_embeddings=torch.rand(3, 1, 2, 4))


def test_masks_of_every_kind_say_the_same():
    """Oracle: a table of who sees whom, written as each back end wants it; two samples, one padded on the left."""
    pad, queries, keys, window = torch.tensor([0, 2]), 4, 9, 5
    q, k = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    seen = (k <= q) & (k > q - window) & (k >= pad[:, None, None])
    rows = torch.tensor([[3, 0], [1, 1]])
    expected = seen.gather(1, rows[:, :, None].expand(-1, -1, keys))
    block = SimpleNamespace(mask_mod=lambda b, h, i, j: seen[b, i, j])
    float_mask = torch.zeros(2, 1, queries, keys).masked_fill(~seen[:, None], torch.finfo(torch.float16).min)
    for mask in (seen[:, None], float_mask, block, torch.nn.functional.pad(seen[:, None], (0, 3))):
        assert torch.equal(allowed_keys(mask, rows, queries, keys), expected)
    token = (k >= pad[:, None]).long()
    assert torch.equal(allowed_keys(token, rows, queries, keys, window=window), expected)
    assert torch.equal(allowed_keys(None, rows[:1], queries, keys, window=window), expected[:1])
    longer = allowed_keys(token, rows, queries, keys + 3, window=window)  # keys with room for more
    assert torch.equal(longer[..., :keys], expected) and not longer[..., keys:].any()
    assert torch.equal(allowed_keys(token, rows, queries, keys, causal=False), token.bool()[:, None].expand(-1, 2, -1))
    with pytest.raises(NotImplementedError, match="one entry for all heads"):
        allowed_keys(seen[:, None].expand(-1, 3, -1, -1), rows, queries, keys)
