"""The stand-in for FlashAttention against sdpa, on whole models and by hand."""

from functools import cache

import pytest
import torch
from torch import nn

from tests import tiny
from tests.fake_flash import flash, registered, use_fake_flash  # noqa: F401 (flash is a fixture)

CAUSAL = [f for f in tiny.FAMILIES if f not in ("gemma3", "paligemma")]  # FlashAttention knows no two-way images


@cache
def model_of(family: str) -> nn.Module:
    return tiny.build(family)


def close(a, b, atol=1e-9):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("family", CAUSAL)
def test_fake_flash_equals_sdpa(family, flash):  # noqa: F811
    model = use_fake_flash(tiny.build(family))
    for kind, called in (("one", "none"), ("ragged_unpadded", "none"), ("ragged", "mask2d")):
        inputs = tiny.batch(family, kind)
        flash.reset()
        got, expected = tiny.greedy(model, inputs, 4), tiny.greedy(model_of(family), inputs, 4)
        close(torch.stack(got.logits), torch.stack(expected.logits), atol=1e-5)
        assert dict(+flash.calls) == {called: 16}  # 4 layers, 4 forwards, none of them packed
        assert max(flash.keys) == inputs["input_ids"].shape[1] + 3


def test_fake_flash_sees_packed_sequences(flash):  # noqa: F811
    """Positions with a gap and no mask: two sequences in one row to FlashAttention, and it is counted."""
    model, inputs = use_fake_flash(tiny.build("llava")), tiny.batch("llava", "one")
    ids = inputs["input_ids"][:, -6:]
    text = tiny.text_model(model)
    with torch.no_grad():
        packed = text(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=False)
        assert flash.calls["packed"] == 4 and flash.calls["none"] == 4
        parts = [text(input_ids=ids[:, a : a + 3], use_cache=False).last_hidden_state for a in (0, 3)]
    close(packed.last_hidden_state, torch.cat(parts, 1))


def test_fake_flash_windows_and_registry():
    with registered() as function:
        g = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, h, n, 8, generator=g, dtype=torch.float64) for h, n in ((4, 3), (2, 9), (2, 9)))
        module = nn.Module()
        module.is_causal = True
        got, _ = function(module, q, k, v, sliding_window=4)
        rows, cols = torch.arange(3)[:, None] + 6, torch.arange(9)[None]
        mask = (cols <= rows) & (cols > rows - 4)
        expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        close(got, expected.transpose(1, 2))
        with pytest.raises(AssertionError, match="mask"):
            function(module, q, k, v, attention_mask=mask[None, None])
    with pytest.raises(ValueError):
        tiny.build("llava", attn="fake_flash_attention")
