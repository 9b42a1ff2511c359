"""A Qwen2.5-VL with random weights in the shape of a real one, and a prompt with a clip for it: for timing alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks import engine_model

CHANGING = 0.2
"""Share of the patches of a slice that differ from those of the slice before."""


@dataclass(frozen=True, kw_only=True)
class Shape(engine_model.Shape):
    """A decoder and a vision tower in real size. side: visual tokens per side of a slice of two frames."""

    tower_layers: int
    tower_hidden: int
    tower_heads: int
    tower_mlp: int
    side: int


def _shape(name: str, **tower: int) -> Shape:
    return Shape(**vars(engine_model.SHAPES[name]), **tower)


SHAPES = {
    "7b": _shape("7b", tower_layers=32, tower_hidden=1280, tower_heads=16, tower_mlp=3420, side=11),
    "tiny": _shape("tiny", tower_layers=2, tower_hidden=32, tower_heads=2, tower_mlp=48, side=2),
}
N_TEXT = 48
MERGE = 2


def build(shape: Shape, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """The model in eval mode, with random weights."""
    head = shape.hidden // shape.heads
    sections = [head // 2 - 2 * (3 * head // 16), 3 * head // 16, 3 * head // 16]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    text = {**shape.text, "rope_parameters": rope, "tie_word_embeddings": False}
    text |= {"bos_token_id": None, "eos_token_id": None}
    vision = {"depth": shape.tower_layers, "hidden_size": shape.tower_hidden, "num_heads": shape.tower_heads}
    vision |= {"intermediate_size": shape.tower_mlp, "out_hidden_size": shape.hidden, "spatial_merge_size": MERGE}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: shape.vocab - 1 - i for i, name in enumerate(names)}
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    with torch.device("meta"):
        model = hf.Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    model = model.to_empty(device=device).eval()
    _fill(model)
    # buffers that no checkpoint brings
    decoder, tower = model.model.language_model, model.model.visual
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config.text_config).to(device)
    tower.rotary_pos_emb = type(tower.rotary_pos_emb)(config.vision_config).to(device)
    model.generation_config = hf.GenerationConfig(do_sample=False, pad_token_id=0)
    return model


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Weights that keep activations near unit size; norms are ones and biases zero."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_("norm" in name and name.endswith("weight"))
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)


def prompt(model: nn.Module, frames: int, side: int) -> dict[str, Tensor]:
    """Model inputs: words, a clip of ``frames`` frames in slices of two that change in a share of places, words."""
    config, slices = model.config, frames // model.config.vision_config.temporal_patch_size
    generator, patches = torch.Generator().manual_seed(1), (MERGE * side) ** 2
    tower = config.vision_config
    width = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
    pixels = [torch.randn(patches, width, generator=generator)]
    for _ in range(slices - 1):
        changed = torch.rand(patches, 1, generator=generator) < CHANGING
        pixels.append(torch.where(changed, torch.randn(patches, width, generator=generator), pixels[-1]))
    words = torch.randint(1, config.text_config.vocab_size - 8, (N_TEXT,), generator=generator)
    clip = [config.vision_start_token_id, *[config.video_token_id] * (slices * side**2), config.vision_end_token_id]
    ids = torch.cat([words[: N_TEXT // 4], torch.tensor(clip), words[N_TEXT // 4 :]])[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == config.video_token_id).int(),
        "video_grid_thw": torch.tensor([[slices, MERGE * side, MERGE * side]]),
        "pixel_values_videos": torch.cat(pixels).to(model.dtype),
    }
    return {name: value.to(model.device) for name, value in inputs.items()}
