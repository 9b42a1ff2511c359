"""Vision sides of a layout of their own, against torch's counter."""

from functools import cache

import pytest
import torch

from tests import tiny
from tests.newer.base import mostly_slow
from tests.test_flops_vision import compare, encode
from vtprune.flops_vision import vision_flops

NAMES = ("ernie4_5_vl_moe", "lfm2_vl", "lfm3_vl", "minicpmv4_6", "minicpmv4_7", "gemma4", "gemma4_unified", "molmo2")
NAMES += ("hunyuan_vl", "llama4", "aria", "idefics2", "granite_docling", "granite4_vision", "janus")
NAMES += ("hyperclovax_vision_v2",)
CASES = [(name, "image") for name in NAMES] + [(name, "video") for name in NAMES if tiny.NEWER[name].clip]
USUAL = [(name, "image") for name in ("lfm2_vl", "gemma4", "aria", "granite4_vision", "hunyuan_vl", "molmo2")]
USUAL += [("ernie4_5_vl_moe", "video"), ("minicpmv4_6", "video")]
TIMM, WINDOWS = "a timm model", "padded windows"
UNKNOWN = {"gemma3n": TIMM, "fast_vlm": TIMM, "perception_lm": TIMM, "deepseek_vl_hybrid": WINDOWS}
UNKNOWN |= {"deepseek_ocr2": WINDOWS, "got_ocr2": WINDOWS, "phi4_multimodal": "encodes pictures itself"}


@cache
def model_of(family: str):
    # the counter cannot follow latents that ask for gradients where none are taken
    return tiny.build(family, dtype=torch.float32).requires_grad_(family != "idefics2")


@pytest.mark.parametrize(("family", "kind"), mostly_slow(CASES, USUAL))
def test_towers_equal_the_counter(family, kind):
    """Oracle: the total of torch's counter around tower and projector, for pictures or clips of unequal size.

    It takes means that are a product (Gemma 4) and parts of heads in one piece (Aria, Granite 4) for the other kind.
    """
    for which in ("ragged", "two_images") if kind == "image" else ("ragged",):
        batch = tiny.batch if kind == "image" else tiny.video
        mine, theirs = compare(model_of(family), batch(family, which, torch.float32))
        assert mine.total == theirs.total > 0
        assert 0 <= mine.attention_causal <= mine.attention


@pytest.mark.parametrize("mode", ["4x", "16x"])
def test_a_merger_in_the_middle_can_be_skipped(mode):
    """Oracle: the counter."""
    pixels, sizes = torch.randn(1, 3, 7, 7 * 384), torch.tensor([[16, 16], [8, 16]])
    model = model_of("minicpmv4_6")
    mine, theirs = encode(model, pixels, target_sizes=sizes, downsample_mode=mode)
    assert mine.total == theirs.total
    shapes = {"pixel_values": pixels.shape, "target_sizes": sizes.tolist(), "downsample_mode": mode}
    assert vision_flops(model, model.model, [shapes]) == mine


def test_the_fine_path_has_four_times_as_many_tokens():
    """Oracle: the counter; both paths read the same patches."""
    model = model_of("granite_docling")
    given = {"pixel_attention_mask": torch.tensor([[True, True], [True, False]])}
    found = []
    for fine in (None, torch.ones(2, dtype=torch.bool)):
        mine, theirs = encode(model, torch.randn(2, 2, 3, 56, 56), **given, tile_fine_mask=fine)
        assert mine.total == theirs.total
        found.append(mine)
    assert found[0].attention == found[1].attention and found[0].linear < found[1].linear


@pytest.mark.parametrize("family", UNKNOWN)
def test_what_is_not_known_is_refused_with_its_reason(family):
    model = tiny.build(family, dtype=torch.float32)
    with pytest.raises(NotImplementedError, match=f"unknown for '{family}'.*{UNKNOWN[family]}"):
        vision_flops(model, tiny.base_model(model), [{"pixel_values": (1, 3, 28, 28)}])
