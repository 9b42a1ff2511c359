"""Granite 4 Vision: LLaVA-NeXT's views; its decoder adds what the tower saw before each of its first layers."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import END, IMAGE, PINPOINTS, START, Sample, noise, text_sizes, vision_sizes


def _granite4_vision(layers: int) -> nn.Module:
    config = hf.Granite4VisionConfig(
        vision_config=hf.SiglipVisionConfig(**{**vision_sizes(), "hidden_size": 64}),
        text_config={**text_sizes(layers), "embedding_multiplier": 2.0, "model_type": "granite4_vision_text"},
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64},
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        deepstack_layer_map=[[-2, 0], [-1, 1]],
        spatial_target_layers=[2, 3, 2, 3],
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.Granite4VisionForConditionalGeneration(config)


def _image(size: str, seed: int) -> Sample:
    """A thumbnail of 2 x 2 tokens and a view of as many in each of four crops or two, whose rows end in newlines."""
    high, wide = (2, 2) if size == "large" else (1, 2)
    ids = (START, *[IMAGE] * (4 + 2 * high * (2 * wide + 1)), END)
    sizes = torch.tensor([[28 * high, 28 * wide]])
    return Sample(ids, {"pixel_values": noise(seed, 1, 1 + high * wide, 3, 28, 28), "image_sizes": sizes})


NEWER["granite4_vision"] = Newer(_granite4_vision, _image, undetectable="takes deepstack_features, vision_mask")
