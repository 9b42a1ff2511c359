"""The pieces that the tiny models and their prompts share: token ids, sizes of configs, samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PAD, BOS, EOS = 0, 1, 127
IMAGE, VIDEO, START, END = 100, 101, 102, 103
PINPOINTS = [[28, 28], [28, 56], [56, 28], [56, 56]]


def text_sizes(layers: int, **more: Any) -> dict:
    """The text side that every family shares: 4 query heads on 2 key heads, width 64."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    tokens = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False}
    return {**sizes, **heads, **tokens, **more}


def vision_sizes(side: int = 28, patch: int = 7, **more: Any) -> dict:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {**sizes, "image_size": side, "patch_size": patch, **more}


def mrope(**more: Any) -> dict:
    return {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, **more}


LLAVA_IDS = {"image_token_index": IMAGE, "tie_word_embeddings": False}
VIDEO_IDS = {**LLAVA_IDS, "video_token_index": VIDEO}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Sample:
    """One conversation: token ids with one placeholder per visual token, and the pixels behind them.

    pixels: tensors that are joined along dim 0 when samples become a batch.
    """

    ids: tuple[int, ...]
    pixels: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: Sample) -> Sample:
        keys = [*self.pixels, *(k for k in other.pixels if k not in self.pixels)]
        both = {k: [s.pixels[k] for s in (self, other) if k in s.pixels] for k in keys}
        return Sample(self.ids + other.ids, {k: cat_padded(v) for k, v in both.items()})


def cat_padded(tensors: list[Tensor]) -> Tensor:
    """Joins along dim 0; smaller trailing dims are zero-padded at the end, as processors pad tiles and pictures."""
    size = [max(t.shape[d] for t in tensors) for d in range(1, tensors[0].dim())]
    return torch.cat(
        [
            nn.functional.pad(t, [p for d in range(t.dim() - 1, 0, -1) for p in (0, size[d - 1] - t.shape[d])])
            for t in tensors
        ]
    )


def words(n: int, seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return Sample(tuple(torch.randint(2, 100, (n,), generator=generator).tolist()))


def noise(seed: int, *shape: int) -> Tensor:
    """Pixels, the same for a seed every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eager_experts(model: nn.Module) -> nn.Module:
    """The model with its experts one after the other, because the grouped product takes no float64."""
    model.set_experts_implementation("eager")
    return model
