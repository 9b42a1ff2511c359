"""Tiny random vision-language models of 14 families: no download, the same weights every time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn

from tests.newer import NEWER
from tests.tiny_parts import (
    BOS,
    END,
    EOS,
    IMAGE,
    LLAVA_IDS,
    PAD,
    PINPOINTS,
    QWEN_IDS,
    START,
    VIDEO,
    VIDEO_IDS,
    mrope,
    text_sizes,
    vision_sizes,
)
from vtprune import compat

MROPE_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def _llava(layers: int) -> nn.Module:
    vision, text = hf.CLIPVisionConfig(**vision_sizes()), hf.LlamaConfig(**text_sizes(layers))
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_seq_length=16, vision_feature_layer=-2, **LLAVA_IDS
    )
    return hf.LlavaForConditionalGeneration(config)


def _llava_next(layers: int) -> nn.Module:
    vision, text = hf.CLIPVisionConfig(**vision_sizes(patch=14)), hf.LlamaConfig(**text_sizes(layers))
    ids = {**LLAVA_IDS, "image_grid_pinpoints": PINPOINTS}
    config = hf.LlavaNextConfig(vision_config=vision, text_config=text, vision_feature_layer=-2, **ids)
    return hf.LlavaNextForConditionalGeneration(config)


def _llava_next_video(layers: int) -> nn.Module:
    vision, text = hf.CLIPVisionConfig(**vision_sizes()), hf.LlamaConfig(**text_sizes(layers))
    ids = {**VIDEO_IDS, "image_grid_pinpoints": PINPOINTS}
    config = hf.LlavaNextVideoConfig(vision_config=vision, text_config=text, vision_feature_layer=-2, **ids)
    return hf.LlavaNextVideoForConditionalGeneration(config)


def _llava_onevision(layers: int) -> nn.Module:
    vision, text = hf.SiglipVisionConfig(**vision_sizes()), hf.Qwen2Config(**text_sizes(layers))
    ids = {**VIDEO_IDS, "image_grid_pinpoints": PINPOINTS}
    config = hf.LlavaOnevisionConfig(vision_config=vision, text_config=text, vision_feature_layer=-1, **ids)
    return hf.LlavaOnevisionForConditionalGeneration(config)


def _qwen2_vl(layers: int) -> nn.Module:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = hf.Qwen2VLConfig(text_config=text_sizes(layers, rope_parameters=mrope()), vision_config=vision, **QWEN_IDS)
    return hf.Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl(layers: int) -> nn.Module:
    vision = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1, 3], "out_hidden_size": 64}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
    config = hf.Qwen2_5_VLConfig(
        text_config=text_sizes(layers, rope_parameters=mrope()), vision_config=vision, **QWEN_IDS
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(layers: int) -> nn.Module:
    vision = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
    vision |= {"out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
    text = text_sizes(layers, head_dim=16, rope_parameters=mrope(mrope_interleaved=True))
    return hf.Qwen3VLForConditionalGeneration(hf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS))


def _internvl(layers: int) -> nn.Module:
    vision = {**vision_sizes(), "image_size": [56, 56], "patch_size": [7, 7]}
    more = {"image_token_id": IMAGE, "image_seq_length": 16, "downsample_ratio": 0.5, "tie_word_embeddings": False}
    config = hf.InternVLConfig(vision_config=vision, text_config=hf.Qwen2Config(**text_sizes(layers)), **more)
    return hf.InternVLForConditionalGeneration(config)


def _idefics3(layers: int, smol: bool = False) -> nn.Module:
    more = {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD, "tie_word_embeddings": False}
    make = hf.SmolVLMConfig if smol else hf.Idefics3Config
    config = make(vision_config=vision_sizes(56), text_config=hf.LlamaConfig(**text_sizes(layers)), **more)
    return hf.SmolVLMForConditionalGeneration(config) if smol else hf.Idefics3ForConditionalGeneration(config)


def _gemma3(layers: int) -> nn.Module:
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    text = text_sizes(layers, head_dim=16, sliding_window=16, layer_types=kinds, query_pre_attn_scalar=16)
    more = {"image_token_id": IMAGE, "boi_token_id": START, "eoi_token_id": END, "mm_tokens_per_image": 16}
    more["tie_word_embeddings"] = False
    config = hf.Gemma3Config(text_config=hf.Gemma3TextConfig(**text), vision_config=vision_sizes(56), **more)
    return hf.Gemma3ForConditionalGeneration(config)


def _paligemma(layers: int) -> nn.Module:
    vision = hf.SiglipVisionConfig(**vision_sizes(projection_dim=64))
    text = hf.GemmaConfig(**text_sizes(layers, head_dim=16))
    config = hf.PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=64, **LLAVA_IDS)
    return hf.PaliGemmaForConditionalGeneration(config)


def _mistral3(layers: int) -> nn.Module:
    vision, text = hf.PixtralVisionConfig(**vision_sizes(56)), hf.MistralConfig(**text_sizes(layers))
    more = {"spatial_merge_size": 2, "vision_feature_layer": -1, **LLAVA_IDS}
    return hf.Mistral3ForConditionalGeneration(hf.Mistral3Config(vision_config=vision, text_config=text, **more))


def _video_llava(layers: int) -> nn.Module:
    vision, text = hf.CLIPVisionConfig(**vision_sizes()), hf.LlamaConfig(**text_sizes(layers))
    more = {"image_seq_length": 16, "video_seq_length": 17 * 4, "vision_feature_layer": -2, **VIDEO_IDS}
    return hf.VideoLlavaForConditionalGeneration(hf.VideoLlavaConfig(vision_config=vision, text_config=text, **more))


_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": lambda layers: _idefics3(layers, smol=True),
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "mistral3": _mistral3,
    "video_llava": _video_llava,
}
FAMILIES: tuple[str, ...] = tuple(_BUILDERS)


@torch.no_grad()
def _randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights that keep activations near unit size, so that every input matters; biases and norms are random too."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in embeddings:
            parameter.copy_(noise * 0.5)
        elif parameter.dim() >= 2:  # experts lie side by side in one parameter
            inputs = parameter.shape[-1] if "experts." in name else parameter[0].numel()
            parameter.copy_(noise * 1.6 / inputs**0.5)
        else:  # a norm's weight stays near where it was, a bias near zero
            parameter.add_(noise * 0.1)


def _made(family: str, make: Callable[[int], nn.Module], layers: int) -> nn.Module:
    try:
        return make(layers)
    except AttributeError as error:
        if f"module {hf.__name__} has no attribute" not in str(error):
            raise
        pytest.skip(f"transformers {hf.__version__} has no {family}")


def build(family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float64, layers: int = 4) -> nn.Module:
    """A tiny model of ``family`` in eval mode, always with the same weights. ``layers``: decoder layers."""
    makers = {**_BUILDERS, **{name: newer.model for name, newer in NEWER.items()}}
    if family not in makers:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(makers)}")
    if family in NEWER and NEWER[family].hybrid and not compat.has_state_masks():
        pytest.skip(f"states are not pruned with transformers {hf.__version__}, which wrap refuses")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _made(family, makers[family], layers)
    _randomise(model)
    model = model.to(dtype).eval()
    model.set_attn_implementation(attn)
    settings = model.generation_config
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = PAD, BOS, EOS
    settings.suppress_tokens = [PAD, IMAGE, VIDEO, START, END]  # a generated placeholder would spoil a second turn
    return model


def text_model(model: nn.Module) -> nn.Module:
    """The decoder inside a model of ``build``: the module that owns ``layers``."""
    base = base_model(model)
    text = getattr(base, "language_model", None) or getattr(base, "text_model", None) or base
    return text if hasattr(text, "layers") else text.model  # Llama 4's comes with its head, or before 5.23 an Omni one


def base_model(model: nn.Module) -> nn.Module:
    """The module inside a model of ``build`` that takes pixels and ids; the model itself where there is no other."""
    inner = getattr(model, "model", model)
    # before 5.23 the thinkers of Qwen's Omni models hold the text model alone there
    return model if hasattr(model, "get_image_features") and not hasattr(inner, "get_image_features") else inner
