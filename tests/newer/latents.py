"""Aria and Idefics2: queries that read an image; experts in the one's decoder."""

from __future__ import annotations

import torch
import transformers as hf
from torch import Tensor, nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, START, Sample, noise, text_sizes, vision_sizes


def _aria(layers: int) -> nn.Module:
    text = hf.AriaTextConfig(**text_sizes(layers, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1))
    config = hf.AriaConfig(
        vision_config=hf.Idefics3VisionConfig(**vision_sizes()),
        text_config=text,
        image_token_index=IMAGE,
        projector_patch_to_query_dict={16: 8},
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    model = hf.AriaForConditionalGeneration(config)
    model.set_experts_implementation("eager")  # the others know no float64
    return model


def _idefics2(layers: int) -> nn.Module:
    perceiver = {"hidden_size": 64, "resampler_n_latents": 8, "resampler_depth": 2, "num_key_value_heads": 2}
    config = hf.Idefics2Config(
        vision_config=vision_sizes(),
        perceiver_config={**perceiver, "resampler_n_heads": 4, "resampler_head_dim": 16},
        text_config=hf.MistralConfig(**text_sizes(layers, sliding_window=None)),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.Idefics2ForConditionalGeneration(config)


def _real(size: str) -> Tensor:
    """(1, 28, 28) bool: where the image is, the rest being padding."""
    real = torch.ones(1, 28, 28, dtype=torch.bool)
    if size == "small":
        real[:, 14:] = False
    return real


def aria_image(size: str, seed: int) -> Sample:
    """Eight tokens; half of a small image is padding."""
    pixels = {"pixel_values": noise(seed, 1, 3, 28, 28), "pixel_mask": _real(size)}
    return Sample((START, *[IMAGE] * 8, END), pixels)


def idefics2_image(size: str, seed: int) -> Sample:
    """The same; its images lie on dim 1, see ``arrange``."""
    pixels = {"pixel_values": noise(seed, 1, 3, 28, 28), "pixel_attention_mask": _real(size)}
    return Sample((START, *[IMAGE] * 8, END), pixels)


def arrange(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """(images, ...) of a batch -> (B, most images of a sample, ...), padded with zeros."""
    if "pixel_values" not in inputs:
        return inputs
    counts = (inputs["input_ids"] == START).sum(1)
    packed = dict(inputs)
    for name in ("pixel_values", "pixel_attention_mask"):
        rows = inputs[name].split(counts.tolist())
        full = [torch.cat([row, row.new_zeros(counts.max() - len(row), *row.shape[1:])]) for row in rows]
        packed[name] = torch.stack(full)
    return packed


NEWER["aria"] = Newer(_aria, aria_image)
NEWER["idefics2"] = Newer(_idefics2, idefics2_image, arrange=arrange)
