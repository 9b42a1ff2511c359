"""Rows and columns of the softmax against brute force, what an attention module compares, and masks of every kind."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vtprune import attention
from vtprune.attention import allowed_keys, attention_columns, attention_inputs, attention_rows
from vtprune.signals import row_attention


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


def brute_force(query, key, allowed, scaling):
    """(H, R, K) softmax in float64, key heads repeated."""
    key = key.double().repeat_interleave(len(query) // len(key), 0)
    scores = query.double() @ key.transpose(1, 2) * scaling
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num()


@pytest.mark.parametrize("limit", [1 << 9, 1 << 13, 1 << 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_equal_brute_force_in_any_chunks(limit, dtype, monkeypatch):
    """Oracle: one softmax in float64 with repeated key heads. The second row sees nothing and is zero."""
    monkeypatch.setattr(attention, "TEMPORARY_BYTES", limit)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(h, n, 8, generator=generator).to(dtype) for h, n in ((6, 7), (2, 11)))
    allowed = torch.rand(7, 11, generator=generator) < 0.6
    allowed[1], allowed[:, 4] = False, False
    expected = brute_force(query, key, allowed, 0.3).mean(0).float()
    torch.testing.assert_close(attention_rows(query, key, allowed, 0.3), expected)
    assert (expected[1] == 0).all()
    columns = torch.tensor([9, 4, 0])
    torch.testing.assert_close(attention_rows(query, key, allowed, 0.3, columns), expected[:, columns])
    every = brute_force(query, key, torch.tensor(True), 0.3).mean(0).float()
    torch.testing.assert_close(attention_rows(query, key, None, 0.3), every)


def test_columns_average_over_the_queries_that_may_see_the_key():
    """Oracle: a softmax in float64, over two images of 300 and 200 patches in one sequence and 20 of padding."""
    query, key = torch.randn(2, 520, 4), torch.randn(2, 520, 4)
    image = torch.tensor([0] * 300 + [1] * 200 + [-1] * 20)
    allowed = (image[:, None] == image) & (image >= 0)
    softmax = brute_force(query, key, allowed, 0.5).mean(0)
    expected = torch.cat([softmax[:300, :300].mean(0), softmax[300:500, 300:500].mean(0), torch.zeros(20)]).float()
    torch.testing.assert_close(attention_columns(query, key, 0.5, allowed), expected)
    whole = brute_force(query, key, torch.tensor(True), 0.5).mean((0, 1)).float()
    torch.testing.assert_close(attention_columns(query, key, 0.5), whole)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if torch.is_tensor(tensor) and not tensor._is_view():
                self.bytes = max(self.bytes, tensor.nbytes)
        return out


@pytest.mark.parametrize(("rows", "keys"), [(1, 4_000), (200, 1_000)])
def test_temporaries_stay_small(rows, keys, monkeypatch):
    """Oracle: the sizes of all tensors that are made, with 2 MB allowed; all keys in float32 are 8 MB or 2, all scores
    of the second case 6."""
    monkeypatch.setattr(attention, "TEMPORARY_BYTES", 2 << 20)
    query, key = (torch.zeros(8, n, 64, dtype=torch.bfloat16) for n in (rows, keys))
    with Largest() as largest:
        attention_rows(query, key, None, 0.1, columns=torch.arange(10))
    assert largest.bytes <= 1 << 20


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
