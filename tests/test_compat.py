"""What differs between versions of transformers, against transformers itself."""

import pytest
import torch
import transformers as hf
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from vtprune.compat import anyres_tiles, with_attention

PINPOINTS = {
    "llava-next": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "onevision": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
}


@pytest.mark.parametrize(("name", "side"), [("llava-next", 336), ("onevision", 384)])
def test_tiles_are_counted_as_the_model_counts_them(name, side):
    """Oracle: transformers' own count, on 300 random sizes and every pinpoint."""
    sizes = torch.randint(20, 3000, (300, 2), generator=torch.Generator().manual_seed(0))
    sizes = torch.cat([sizes, torch.tensor(PINPOINTS[name])])
    expected = [image_size_to_num_patches(size, PINPOINTS[name], side) for size in sizes.tolist()]
    assert anyres_tiles(sizes, PINPOINTS[name], side) == expected
    assert anyres_tiles(sizes.tolist(), PINPOINTS[name], side) == expected
    assert len(set(expected)) > 1


def test_a_config_with_another_attention_leaves_the_first_as_it_was():
    config = hf.LlavaConfig(attn_implementation="eager")
    changed = with_attention(config, "sdpa")
    assert changed._attn_implementation == "sdpa" and changed.text_config is config.text_config
    assert config._attn_implementation == config.text_config._attn_implementation == "eager"
