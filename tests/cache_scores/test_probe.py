"""Attention of probe queries, against a softmax of everything in float64."""

import importlib
from dataclasses import replace

import pytest
import torch

from vtprune.cache_scores.probe import causal, probe_blocks, probe_rows, received, seeing
from vtprune_kernels.attention_columns import EVERYTHING, Visible

columns = importlib.import_module("vtprune_kernels.attention_columns")
SCALE, PAD = 0.4, 5


def tensors(batch=2, heads=6, groups=2, rows=9, n=31, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, h, m, d, generator=generator) for h, m in ((heads, rows), (groups, n)))
    return q, k


def sights(batch=2, rows=9, n=31):
    """Each way to see, as (Visible, the same as (B, R, N) bool)."""
    generator = torch.Generator().manual_seed(1)
    place, index = torch.arange(n - rows, n), torch.arange(n)
    valid = torch.ones(batch, n, dtype=torch.bool)
    valid[1, :PAD] = False
    full = torch.ones(batch, rows, n, dtype=torch.bool)
    below = (index <= place[:, None]).expand(batch, -1, -1)
    blind = below.clone()
    blind[1, 2] = False
    gaps = torch.arange(0, 2 * n, 2)  # keys of a prompt that was pruned before
    some = (torch.rand(batch, rows, n, generator=generator) < 0.4) & below
    some[0, 3] = False
    yield EVERYTHING, full
    yield causal(place, index, valid=valid), below & valid[:, None]
    yield causal(place, index, window=7), below & (index > place[:, None] - 7)
    yield causal(torch.stack([place, place.index_fill(0, torch.tensor(2), -1)]), index), blind
    yield causal(torch.arange(rows) * 3 + 10, gaps), (gaps <= torch.arange(rows)[:, None] * 3 + 10).expand_as(full)
    # some see nothing but padding
    early = index <= torch.arange(rows)[:, None]
    yield causal(torch.arange(rows), index, valid=valid), early & valid[:, None]
    yield Visible(allowed=early.expand_as(full).contiguous(), valid=valid), early & valid[:, None]
    # queries of an answer, after the prompt
    yield causal(torch.arange(n, n + rows), index), full
    yield Visible(allowed=some, valid=valid), some & valid[:, None]


def dense(q, k, sees, softcap=None):
    scores = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * SCALE
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    paid = scores.masked_fill(~sees[:, None], -1e300).softmax(-1)
    return paid.masked_fill(~sees[:, None], 0)


@pytest.mark.parametrize(("visible", "sees"), list(sights()))
@pytest.mark.parametrize("small", [False, True])
def test_rows_and_sums_are_those_of_all_attention(visible, sees, small, monkeypatch):
    """Oracle: everything at once in float64; small: blocks of a row or two."""
    if small:
        monkeypatch.setattr(columns, "CPU_BLOCK_BYTES", 800)
        monkeypatch.setattr(columns, "CPU_BLOCK_ROWS", 6)
    q, k = tensors()
    paid = dense(q, k, sees)
    grouped = paid.unflatten(1, (2, 3))
    torch.testing.assert_close(probe_rows(q, k, scale=SCALE, visible=visible).double(), paid, rtol=0, atol=1e-6)
    some, each = sees.any(-1).sum(1)[:, None, None], sees.sum(1)[:, None]
    expected = {
        "sum": grouped.sum((2, 3)),
        "queries": grouped.mean(2).sum(2) / some,
        "seeing": grouped.mean(2).sum(2) / each.clamp(min=1),
    }
    for over, value in expected.items():
        found = received(q, k, scale=SCALE, visible=visible, over=over)
        # the sum is of attention that is the mean of the heads
        value = value / 3 if over == "sum" else value
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-6)
        found = received(q, k, scale=SCALE, visible=visible, heads="all", over=over)
        torch.testing.assert_close(found.double(), value.mean(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(seeing(visible, 2, 9, 31, q.device), sees.any(-1))


def test_a_batch_is_its_samples_and_padding_is_not_read():
    """Oracle: the padded sample alone, cut to its tokens; what stands in its padding is NaN."""
    q, k = tensors(rows=31)
    q[1, :, :PAD] = k[1, :, :PAD] = torch.nan
    place = torch.arange(31).repeat(2, 1)
    valid = torch.ones(2, 31, dtype=torch.bool)
    place[1, :PAD], valid[1, :PAD] = -1, False
    visible = causal(place, torch.arange(31), valid=valid)
    cut = causal(torch.arange(31 - PAD), torch.arange(31 - PAD))
    alone = received(q[1:, :, PAD:], k[1:, :, PAD:], scale=SCALE, visible=cut)
    found = received(q, k, scale=SCALE, visible=visible)
    torch.testing.assert_close(found[1:, :, PAD:], alone, rtol=1e-5, atol=1e-6)
    assert bool((found[1, :, :PAD] == 0).all())
    rows = probe_rows(q, k, scale=SCALE, visible=visible)
    assert bool(rows.isfinite().all()) and bool((rows[1, :, :PAD] == 0).all())


def test_no_block_is_larger_than_it_may_be(monkeypatch):
    """Oracle: the size asked for, and blocks that cover every row and head once."""
    monkeypatch.setattr(columns, "CPU_BLOCK_BYTES", 4 * 31 * 3 * 2)
    monkeypatch.setattr(columns, "CPU_BLOCK_ROWS", 0)
    q, k = tensors()
    covered = torch.zeros(2, 6, 9)
    for block in probe_blocks(q, k, scale=SCALE):
        assert block.attention.numel() <= 31 * 3 * 2
        covered[block.sample, block.heads, block.rows] += 1
    assert bool((covered == 1).all())


def test_scores_are_capped_as_the_model_caps_them():
    """Oracle: tanh in float64."""
    q, k = tensors()
    everything = torch.ones(2, 9, 31, dtype=torch.bool)
    expected = dense(q * 9, k, everything, softcap=5.0)
    found = probe_rows(q * 9, k, scale=SCALE, softcap=5.0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    summed = received(q * 9, k, scale=SCALE, softcap=5.0, heads="all")
    torch.testing.assert_close(summed.double(), expected.mean(1).sum(1), rtol=1e-5, atol=1e-6)


def test_wrong_calls_are_refused_by_value():
    q, k = tensors()
    with pytest.raises(ValueError, match="heads.*'each'"):
        received(q, k, scale=1.0, heads="each")
    with pytest.raises(ValueError, match="over.*'keys'"):
        received(q, k, scale=1.0, over="keys")
    with pytest.raises(ValueError, match="ascend"):
        causal(torch.tensor([3]), torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="valid"):
        received(q, k, scale=1.0, visible=replace(EVERYTHING, valid=torch.ones(2, 3, dtype=torch.bool)))
